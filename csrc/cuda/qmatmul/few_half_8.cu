// qmatmul of up to 8 rows of half.
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

template <>
FewKernel few_kernel_of<__half, 1>(int bits) {
  return few_kernel_of_width<__half, 1>(bits);
}

}  // namespace nybble::cuda
