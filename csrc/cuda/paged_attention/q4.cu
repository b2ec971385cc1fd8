// The kernels of one storage, compiled apart so that no unit takes long.
#include "cuda/paged_attention/warp.cuh"

namespace nybble::cuda::paged {

Kernel q4_kernel(int64_t D) {
  switch (D) {
    case 64:
      return warp_kernel<Codes4, Codes4, 64>();
    case 128:
      return warp_kernel<Codes4, Codes4, 128>();
    case 256:
      return warp_kernel<Codes4, Codes4, 256>();
    default:
      return {};
  }
}

}  // namespace nybble::cuda::paged
