// What the integer products share: the tensor cores' product of bytes, loads, and the way from a sum to y.
#pragma once
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/int8_matmul/strategies.h"

namespace nybble::cuda::int8 {

// sum += the products of the four bytes of each. Before sm_61 there is no instruction for it.
__device__ inline void add_products(int& sum, unsigned a, unsigned b) {
#if __CUDA_ARCH__ >= 610
  sum = __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
#else
#pragma unroll
  for (int j = 0; j < 32; j += 8) sum += static_cast<int8_t>(a >> j) * static_cast<int8_t>(b >> j);
#endif
}

// D (16 x 8) += A (16 x 32) B (32 x 8) in int32. Lane 4g + t holds, four bytes a register:
//   a[0], a[1]  rows g and g + 8 of A, k from 4t          b[0]  column g of B, k from 4t
//   a[2], a[3]  the same, k from 16 + 4t                  b[1]  the same, k from 16 + 4t
//   d[0], d[1]  row g, columns 2t and 2t + 1 of D         d[2], d[3]  row g + 8
__device__ inline void multiply_add(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
#pragma unroll
  for (int i = 0; i < 4; ++i)  // the quarters of A: rows in i % 2, k in i / 2
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d[i % 2 * 2]), "+r"(d[i % 2 * 2 + 1])
                 : "r"(a[i]), "r"(b[i / 2]));
#else
  // No tensor cores for bytes: each lane is handed the rows and columns of its numbers.
  const int lane = threadIdx.x % 32, group = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const unsigned row = __shfl_sync(0xffffffffu, a[i], group * 4 + k);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        add_products(d[i % 2 * 2 + j], row, __shfl_sync(0xffffffffu, b[i / 2], (t * 2 + j) * 4 + k));
    }
#endif
}

// 16 bytes of a row of K from k on, zeros behind its end. kWide: rows start at multiples of 16 bytes and K is one too.
template <bool kWide>
__device__ inline uint4 bytes_of(const int8_t* row, int64_t k, int64_t K) {
  uint4 all{};
  if constexpr (kWide) {
    if (k < K) all = *reinterpret_cast<const uint4*>(row + k);
  } else {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const unsigned byte = k + j < K ? static_cast<uint8_t>(row[k + j]) : 0;
      (&all.x)[j / 4] |= byte << (j % 4 * 8);
    }
  }
  return all;
}

inline bool wide(const Int8MatmulArgs& a) {
  const auto even = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return a.K % 16 == 0 && (a.M == 1 || a.x_stride % 16 == 0) && even(a.x) && even(a.weight);
}

// Whether the copy engine can take both sides: rows that lie one behind another, not over each other.
inline bool boxes(const Int8MatmulArgs& a) {
  return gpu().is_sm90 && wide(a) && a.K > 0 && (a.M == 1 || a.x_stride >= a.K);
}

// The scales of row and column, their product first, as the CPU multiplies.
__device__ inline float result(const Int8MatmulArgs& a, int sum, float x_scale, float w_scale, float bias) {
  const float y = __fmul_rn(static_cast<float>(sum), __fmul_rn(x_scale, w_scale));
  return a.bias ? __fadd_rn(y, bias) : y;
}

// One number of y. The type is asked for here: it costs a kernel nothing, and one for each type would be three builds.
__device__ inline void put(const Int8MatmulArgs& a, int64_t m, int64_t n, float y) {
  const int64_t at = m * a.N + n;
  if (a.y_dtype == DType::f32)
    static_cast<float*>(a.y)[at] = y;
  else if (a.y_dtype == DType::f16)
    static_cast<__half*>(a.y)[at] = __float2half(y);
  else
    static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16(y);
}

}  // namespace nybble::cuda::int8
