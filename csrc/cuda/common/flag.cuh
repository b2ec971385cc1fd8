// Flags in scratch, which holds anything at first: one that bears the mark of this call is set. Whoever has waited for
// it takes it down, since a graph runs the same call again. The mark has 64 bits, which chance does not bring about.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "cuda/common/async_copy.cuh"

namespace nybble::cuda {

using Flag = unsigned long long;

// A number unlike any other call's, and unlike what memory holds.
inline Flag next_mark() {
  static std::atomic<uint64_t> calls{0};
  uint64_t x = (calls.fetch_add(1, std::memory_order_relaxed) + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return (x ^ (x >> 31)) | 1;  // not 0
}

// After what this thread has written, or seen written.
__device__ inline void set_flag(Flag* flag, Flag mark) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(flag), "l"(mark) : "memory");
#endif
}

// Until it is set. What was written before, this thread sees.
__device__ inline void wait_for_flag(Flag* flag, Flag mark) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  Flag seen;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(flag) : "memory");
  } while (seen != mark);
  *flag = 0;
#endif
}

// A count in shared memory: one more, after what this thread has written or seen written; and until it is so many.
__device__ inline void count_in_order(unsigned* count) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("red.release.cta.shared::cta.add.u32 [%0], 1;" ::"r"(shared_address(count)) : "memory");
#endif
}
__device__ inline void wait_for_count(const unsigned* count, unsigned many) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  for (;;) {
    unsigned seen;
    asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(seen) : "r"(shared_address(count)) : "memory");
    if (seen >= many) break;
    __nanosleep(100);
  }
#endif
}

}  // namespace nybble::cuda
