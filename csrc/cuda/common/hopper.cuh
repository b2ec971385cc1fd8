// Hopper's own instructions, by name: barriers that count bytes, the copy engine, products of a warpgroup.
// sm_90a only, but for the barriers and copies (sm_90).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/async_copy.cuh"
#include "cuda/common/cluster.cuh"

namespace nybble::cuda {

// By their addresses in shared memory: an arrival at a barrier, one that announces bytes which are to come before the
// phase ends, and the wait for a phase of this parity.
__device__ inline void arrive_at_barrier(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void arrive_expecting(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// An arrival at the barrier that lies at this place in block `rank` of the cluster.
__device__ inline void arrive_at_barrier_of(int rank, unsigned barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ inline void wait_at_barrier(unsigned barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

// A barrier in shared memory whose phase ends when all arrivals and all announced bytes are there.
struct Barrier {
  uint64_t state;

  __device__ void init(int arrivals) { init_barrier(shared_address(this), arrivals); }
  __device__ void arrive() { arrive_at_barrier(shared_address(this)); }
  __device__ void arrive_expecting(int bytes) { cuda::arrive_expecting(shared_address(this), bytes); }
  __device__ void wait(uint32_t phase) { wait_at_barrier(shared_address(this), phase); }
};

// Other threads and the copy engine see the barriers' first state.
__device__ inline void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// The copy engine reads a tensor map ahead of its first box.
__device__ inline void prefetch_map(const void* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// A box of a tensor map, at (column, row).
__device__ inline void copy_box(void* to, const void* map, int column, int row, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// Bytes as they lie: both places and their number are multiples of 16.
__device__ inline void copy_bytes(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// Between what threads wrote to memory and what the copy engine reads.
__device__ inline void fence_copy_engine() { asm volatile("fence.proxy.async;" ::: "memory"); }

// A box to the same place in all blocks of the cluster named by `ranks`, each with its own barrier there.
__device__ inline void copy_box_to(uint16_t ranks, void* to, const void* map, int column, int row, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(ranks)
      : "memory");
}

// All threads of the cluster that have not left.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- products of a warpgroup: D[64][N] += A[64][16] * B[16][N], A from registers, B from shared memory

__device__ inline void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// B is [N][64 numbers of 2 bytes], rows of 128 bytes, swizzled as the copy engine does, 1024-byte aligned. This is the
// descriptor's low half, the bytes' place / 16; a step of 16 numbers is 2 more.
__device__ inline uint32_t swizzled_operand(uint32_t start) { return (start & 0x3ffff) >> 4 | 1u << 16; }
// And the descriptor: 1024 bytes from 8 rows to the next, swizzle of 128. Steps are best added to this, all 64 bits at
// once: with halves apart each product costs two moves more.
__device__ inline uint64_t described(uint32_t low) { return uint64_t{0x40000040} << 32 | low; }

#define NYBBLE_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define NYBBLE_D8(i) NYBBLE_D4(i), NYBBLE_D4(i + 4)
#define NYBBLE_D32(i) NYBBLE_D8(i), NYBBLE_D8(i + 8), NYBBLE_D8(i + 16), NYBBLE_D8(i + 24)
#define NYBBLE_PRODUCT(N, TYPE, REGISTERS, A0, A1, A2, A3, B, ADD, ...)                       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                    \
               ", 0;\n"                                                                       \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS \
               "}, "                                                                          \
               "{" A0 ", " A1 ", " A2 ", " A3 "}, " B ", add, 1, 1, 0;\n}"                    \
               : __VA_ARGS__                                                                  \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "n"(kAdd))
#define NYBBLE_D_REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NYBBLE_D_REGISTERS_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NYBBLE_D_REGISTERS_64                                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NYBBLE_D_REGISTERS_128                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63"
#define NYBBLE_D_REGISTERS_256                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, "     \
  "%101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "     \
  "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d of lane 4 g + t in warp w: d[4 j + 2 h + e] is row 16 w + 8 h + g, column 8 j + 2 t + e.
// Without kAdd what was in d is left out.
template <typename T, int N, bool kAdd = true>
__device__ void product(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  if constexpr (N == 16 && kHalf) {
    NYBBLE_PRODUCT(16, "f16", NYBBLE_D_REGISTERS_16, "%8", "%9", "%10", "%11", "%12", "%13", NYBBLE_D8(0));
  } else if constexpr (N == 16) {
    NYBBLE_PRODUCT(16, "bf16", NYBBLE_D_REGISTERS_16, "%8", "%9", "%10", "%11", "%12", "%13", NYBBLE_D8(0));
  }
  if constexpr (N == 32 && kHalf) {
    NYBBLE_PRODUCT(32, "f16", NYBBLE_D_REGISTERS_32, "%16", "%17", "%18", "%19", "%20", "%21", NYBBLE_D8(0),
                   NYBBLE_D8(8));
  } else if constexpr (N == 32) {
    NYBBLE_PRODUCT(32, "bf16", NYBBLE_D_REGISTERS_32, "%16", "%17", "%18", "%19", "%20", "%21", NYBBLE_D8(0),
                   NYBBLE_D8(8));
  }
  if constexpr (N == 64 && kHalf) {
    NYBBLE_PRODUCT(64, "f16", NYBBLE_D_REGISTERS_64, "%32", "%33", "%34", "%35", "%36", "%37", NYBBLE_D32(0));
  } else if constexpr (N == 64) {
    NYBBLE_PRODUCT(64, "bf16", NYBBLE_D_REGISTERS_64, "%32", "%33", "%34", "%35", "%36", "%37", NYBBLE_D32(0));
  }
  if constexpr (N == 128 && kHalf) {
    NYBBLE_PRODUCT(128, "f16", NYBBLE_D_REGISTERS_128, "%64", "%65", "%66", "%67", "%68", "%69", NYBBLE_D32(0),
                   NYBBLE_D32(32));
  } else if constexpr (N == 128) {
    NYBBLE_PRODUCT(128, "bf16", NYBBLE_D_REGISTERS_128, "%64", "%65", "%66", "%67", "%68", "%69", NYBBLE_D32(0),
                   NYBBLE_D32(32));
  }
  if constexpr (N == 256 && kHalf) {
    NYBBLE_PRODUCT(256, "f16", NYBBLE_D_REGISTERS_256, "%128", "%129", "%130", "%131", "%132", "%133", NYBBLE_D32(0),
                   NYBBLE_D32(32), NYBBLE_D32(64), NYBBLE_D32(96));
  } else if constexpr (N == 256) {
    NYBBLE_PRODUCT(256, "bf16", NYBBLE_D_REGISTERS_256, "%128", "%129", "%130", "%131", "%132", "%133", NYBBLE_D32(0),
                   NYBBLE_D32(32), NYBBLE_D32(64), NYBBLE_D32(96));
  }
}

}  // namespace nybble::cuda
