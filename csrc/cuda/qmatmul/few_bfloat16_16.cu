// qmatmul of up to 16 rows of bfloat16.
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

template <>
FewKernel few_kernel_of<__nv_bfloat16, 2>(int bits) {
  return few_kernel_of_width<__nv_bfloat16, 2>(bits);
}

}  // namespace nybble::cuda
