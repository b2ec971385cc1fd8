// qmatmul of up to 32 rows of half.
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

template <>
FewKernel few_kernel_of<__half, 4>(int bits) {
  return few_kernel_of_width<__half, 4>(bits);
}

}  // namespace nybble::cuda
