// qmatmul of up to 8 rows of bfloat16.
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

template <>
FewKernel few_kernel_of<__nv_bfloat16, 1>(int bits) {
  return few_kernel_of_width<__nv_bfloat16, 1>(bits);
}

}  // namespace nybble::cuda
