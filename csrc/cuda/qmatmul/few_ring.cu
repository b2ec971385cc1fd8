// Hot: what a token waits for. Spills would be read again and again.
#include "cuda/qmatmul/few_ring.cuh"

namespace nybble::cuda {
namespace {

template <typename T, bool kZeros>
FewKernel of_slots(int slots) {
  return slots == kFewSlots ? few_ring_kernel<T, kZeros, kFewSlots> : few_ring_kernel<T, kZeros, kFewLeastSlots>;
}

}  // namespace

template <typename T>
FewKernel few_ring_kernel_of(bool zeros, int slots) {
  return zeros ? of_slots<T, true>(slots) : of_slots<T, false>(slots);
}
template FewKernel few_ring_kernel_of<__half>(bool zeros, int slots);
template FewKernel few_ring_kernel_of<__nv_bfloat16>(bool zeros, int slots);

}  // namespace nybble::cuda
