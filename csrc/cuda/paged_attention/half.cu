// The kernels of one storage, compiled apart so that no unit takes long.
#include "cuda/paged_attention/warp.cuh"

namespace nybble::cuda::paged {

Kernel half_kernel(int64_t D) {
  switch (D) {
    case 64:
      return warp_kernel<Plain<__half>, Plain<__half>, 64>();
    case 80:
      return warp_kernel<Plain<__half>, Plain<__half>, 80>();
    case 96:
      return warp_kernel<Plain<__half>, Plain<__half>, 96>();
    case 128:
      return warp_kernel<Plain<__half>, Plain<__half>, 128>();
    case 256:
      return warp_kernel<Plain<__half>, Plain<__half>, 256>();
    default:
      return {};
  }
}

}  // namespace nybble::cuda::paged
