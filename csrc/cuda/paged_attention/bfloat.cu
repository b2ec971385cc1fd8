// The kernels of one storage, compiled apart so that no unit takes long.
#include "cuda/paged_attention/warp.cuh"

namespace nybble::cuda::paged {

Kernel bfloat_kernel(int64_t D) {
  switch (D) {
    case 64:
      return warp_kernel<Plain<__nv_bfloat16>, Plain<__nv_bfloat16>, 64>();
    case 80:
      return warp_kernel<Plain<__nv_bfloat16>, Plain<__nv_bfloat16>, 80>();
    case 96:
      return warp_kernel<Plain<__nv_bfloat16>, Plain<__nv_bfloat16>, 96>();
    case 128:
      return warp_kernel<Plain<__nv_bfloat16>, Plain<__nv_bfloat16>, 128>();
    case 256:
      return warp_kernel<Plain<__nv_bfloat16>, Plain<__nv_bfloat16>, 256>();
    default:
      return {};
  }
}

}  // namespace nybble::cuda::paged
