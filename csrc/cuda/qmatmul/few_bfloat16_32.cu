// qmatmul of up to 32 rows of bfloat16.
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

template <>
FewKernel few_kernel_of<__nv_bfloat16, 4>(int bits) {
  return few_kernel_of_width<__nv_bfloat16, 4>(bits);
}

}  // namespace nybble::cuda
