// The kernels of one storage, compiled apart so that no unit takes long.
#include "cuda/paged_attention/warp.cuh"

namespace nybble::cuda::paged {

Kernel fp8_kernel(int64_t D) {
  switch (D) {
    case 64:
      return warp_kernel<Fp8, Fp8, 64>();
    case 96:
      return warp_kernel<Fp8, Fp8, 96>();
    case 128:
      return warp_kernel<Fp8, Fp8, 128>();
    case 256:
      return warp_kernel<Fp8, Fp8, 256>();
    default:
      return {};
  }
}

}  // namespace nybble::cuda::paged
