// Hot: what a token waits for. Spills would be read again and again.
#include "cuda/qmatmul/few_kernels.cuh"

namespace nybble::cuda {
template FewKernel few_kernel_of<__half>(int bits, bool zeros, bool digits);
}  // namespace nybble::cuda
