// qmatmul of up to 16 rows of half.
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

template <>
FewKernel few_kernel_of<__half, 2>(int bits) {
  return few_kernel_of_width<__half, 2>(bits);
}

}  // namespace nybble::cuda
