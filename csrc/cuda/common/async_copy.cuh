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
  if constexpr (kBytes == 16)  // past L1: what is read once need not be kept near; whole lines into L2
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
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

// A barrier in shared memory that counts arrivals; its phase changes when as many as init_barrier() said have come.
__device__ inline void init_barrier(unsigned barrier, int arrivals) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#endif
}

__device__ inline void arrive(unsigned barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
#endif
}

// Arrives once this thread's copies so far are complete.
__device__ inline void arrive_after_copies(unsigned barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

// Until the phase of this parity (0 of the first phase) is over.
__device__ inline void wait_for_phase(unsigned barrier, int parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned over = 0;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#endif
  } while (over == 0);
#endif
}

}  // namespace nybble::cuda
