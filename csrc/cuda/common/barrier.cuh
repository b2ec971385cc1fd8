// Barriers in shared memory that count arrivals and bytes (sm_80 and later), and the copy engine that reports to them
// (sm_90 and later).
#pragma once
#include <cstdint>

#include "cuda/common/async_copy.cuh"

namespace nybble::cuda {

// A phase is over after `arrivals` arrivals, and when the bytes announced are there.
struct Barrier {
  uint64_t state;

  __device__ void init(int arrivals) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
#endif
  }
  __device__ void arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("{.reg .b64 before; mbarrier.arrive.shared.b64 before, [%0];}" ::"r"(shared_address(this)) : "memory");
#endif
  }
  __device__ void arrive_expecting(int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
#endif
  }
  // Arrives when this thread's cp.async copies so far are there.
  __device__ void arrive_after_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(this)) : "memory");
#endif
  }
  // Until the phase of this parity is over.
  __device__ void wait(uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#endif
  }
};

// After init(), before the copy engine is told of a barrier.
__device__ inline void fence_barrier_init() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// `bytes`, a multiple of 16, both sides aligned to 16; read once, so the first to leave L2.
__device__ inline void copy_bytes_once(unsigned to, const void* from, int bytes, Barrier* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}

}  // namespace nybble::cuda
