// Global to shared memory without registers between (sm_80 and later; nothing before it).
#pragma once
#include <cuda_runtime.h>

namespace nybble::cuda {

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// kBytes: 4, 8 or 16, both sides aligned to it. Where `there` is false nothing is read and zeros are written.
template <int kBytes>
__device__ inline void copy_async(unsigned to, const void* from, bool there) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const int size = there ? kBytes : 0;
  if constexpr (kBytes == 16)  // past L1: what is read once need not be kept near
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(size)
                 : "memory");
#endif
}

// Closes the group of this thread's copies since the last call.
__device__ inline void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kLeft of this thread's groups are under way.
template <int kLeft>
__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace nybble::cuda
