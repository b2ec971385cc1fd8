// Flags in scratch, which holds anything at first: one that bears the mark of this call is set. Whoever has waited for
// it takes it down, since a graph runs the same call again. The mark has 64 bits, which chance does not bring about.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

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

// Until all of these are set. What was written before, this thread sees.
template <int kFlags>
__device__ void wait_for_flags(Flag* flags, Flag mark) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  for (bool all = false; !all;) {
    all = true;
#pragma unroll
    for (int i = 0; i < kFlags; ++i) {
      Flag seen;
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(flags + i) : "memory");
      all = all && seen == mark;
    }
  }
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kFlags; ++i) flags[i] = 0;
#endif
}

}  // namespace nybble::cuda
