// What attention wants of Hopper beside common/hopper.cuh, one instruction a function (sm_90a).
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace nybble::cuda {

// What this thread wrote to shared memory is seen by the copy engine and the matrix units, once a barrier has passed
// after it.
__device__ inline void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A box of a tensor in memory to shared memory, by the copy engine; its bytes count at the barrier.
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x0, int x1, int x2, int x3,
                                int x4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "memory");
}

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- products of a warpgroup ----

// The compiler does not know that a product still writes c: nothing that reads it may move above this.
template <int kN>
__device__ inline void products_done(float (&c)[kN][4]) {
#pragma unroll
  for (int n = 0; n < kN; ++n) asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

// A tile in shared memory: rows of 128 bytes, chunk of 16 bytes c at c ^ (row % 8), from a multiple of 1024 bytes (or
// 32 bytes on for the next 16 numbers of a row). `across`: bytes from one such tile to the next along the row's
// dimension.
__device__ inline uint64_t describe(uint32_t tile, int across) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kEightRows | (static_cast<uint64_t>(across / 16) << 16) | ((tile & 0x3ffff) / 16);
}

#define NYBBLE_F4(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define NYBBLE_F32 \
  NYBBLE_F4(0), NYBBLE_F4(1), NYBBLE_F4(2), NYBBLE_F4(3), NYBBLE_F4(4), NYBBLE_F4(5), NYBBLE_F4(6), NYBBLE_F4(7)
#define NYBBLE_F64                                                                                                   \
  NYBBLE_F32, NYBBLE_F4(8), NYBBLE_F4(9), NYBBLE_F4(10), NYBBLE_F4(11), NYBBLE_F4(12), NYBBLE_F4(13), NYBBLE_F4(14), \
      NYBBLE_F4(15)
#define NYBBLE_LIST32                                                                                   \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31}"
#define NYBBLE_LIST64                                                                                    \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"  \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
  "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define NYBBLE_A_SHARED(N, TYPE, LIST, REGISTERS, A, B, ADD)                                         \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADD                                                 \
               ", 0;\n"                                                                              \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " " LIST ", " A ", " B \
               ", p, 1, 1, 0, 0; }"                                                                  \
               : REGISTERS                                                                           \
               : "l"(a), "l"(b), "r"(add))
#define NYBBLE_A_REGISTERS(N, TYPE, LIST, REGISTERS, A, B, ADD)                                                        \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADD                                                                   \
               ", 0;\n"                                                                                                \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " " LIST ", " A ", " B ", p, 1, 1, 1; }" \
               : REGISTERS                                                                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

// c = a b^T + (add ? c : 0) over 16 numbers of the rows of a (64 rows) and b (8 kN rows), both in shared memory.
template <typename T, int kN>
__device__ inline void multiply_rows(uint64_t a, uint64_t b, int add, float (&c)[kN][4]) {
  static_assert(kN == 8 || kN == 16);
  if constexpr (kN == 8 && std::is_same_v<T, __half>)
    NYBBLE_A_SHARED("64", "f16", NYBBLE_LIST32, NYBBLE_F32, "%32", "%33", "%34");
  else if constexpr (kN == 8)
    NYBBLE_A_SHARED("64", "bf16", NYBBLE_LIST32, NYBBLE_F32, "%32", "%33", "%34");
  else if constexpr (std::is_same_v<T, __half>)
    NYBBLE_A_SHARED("128", "f16", NYBBLE_LIST64, NYBBLE_F64, "%64", "%65", "%66");
  else
    NYBBLE_A_SHARED("128", "bf16", NYBBLE_LIST64, NYBBLE_F64, "%64", "%65", "%66");
}

// c += a b: a 64 x 16 in registers, b 16 rows of 8 kN numbers in shared memory.
template <typename T, int kN>
__device__ inline void multiply_columns(const uint32_t (&a)[4], uint64_t b, float (*c)[4]) {
  static_assert(kN == 8 || kN == 16);
  if constexpr (kN == 8 && std::is_same_v<T, __half>)
    NYBBLE_A_REGISTERS("64", "f16", NYBBLE_LIST32, NYBBLE_F32, "{%32,%33,%34,%35}", "%36", "%37");
  else if constexpr (kN == 8)
    NYBBLE_A_REGISTERS("64", "bf16", NYBBLE_LIST32, NYBBLE_F32, "{%32,%33,%34,%35}", "%36", "%37");
  else if constexpr (std::is_same_v<T, __half>)
    NYBBLE_A_REGISTERS("128", "f16", NYBBLE_LIST64, NYBBLE_F64, "{%64,%65,%66,%67}", "%68", "%69");
  else
    NYBBLE_A_REGISTERS("128", "bf16", NYBBLE_LIST64, NYBBLE_F64, "{%64,%65,%66,%67}", "%68", "%69");
}

#undef NYBBLE_F4
#undef NYBBLE_F32
#undef NYBBLE_F64
#undef NYBBLE_LIST32
#undef NYBBLE_LIST64
#undef NYBBLE_A_SHARED
#undef NYBBLE_A_REGISTERS

}  // namespace nybble::cuda
#endif
