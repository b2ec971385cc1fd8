// Narrow codes times one or two rows of x in whole numbers, for few_registers.cuh: masked out of their words four at a
// time, codes are operands of the int8 tensor cores as they stand.
//
//   x of a quad (128 k) in fixed point:  x = q 2^(e-21),  |q| < 2^22,  q = d0 + 2^8 d1 + 2^16 d2, digits of -128 ...
//   127
//
// where 2^e is the power of two below max|x| (that above, if max|x| is within 1/64 of it). x is off by at most
// 2^-22 * 2^e, float16 only where it is below 2^-11 max|x| and has more digits than fit; sums over the quad are exact.
// With an infinity or a NaN in it, a quad gives NaN. bfloat16 below 2^-105 counts from there.
//
//      digit d of row r, a plane: a byte to each k, in the order of bytes of A (TinyCodes::bytes)  | 16 bytes
//      ...
//      numbers: [quad][row]{d0 + 2^8 d1, d2}: their sum over the quad, and what the products are worth
#pragma once
#include "cuda/codec/tile.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/qmatmul/few_rows.cuh"

namespace nybble::cuda {

constexpr int kFewDigitRows = 2, kFewDigits = 3;

__host__ __device__ inline int few_plane_bytes(int quads) { return quads * 128 + 16; }
__host__ __device__ inline int few_digit_bytes(int rows, int quads) {
  return rows * (kFewDigits * few_plane_bytes(quads) + quads * 16);
}

// The digits of some rows as a lane sees them, from some quad on.
struct FewDigits {
  unsigned planes;        // what the lane hands to ldmatrix: matrices are the halves of two tiles
  const float2* numbers;  // of the lane's row and pair of digits
  int step;               // of them to the next quad
  int base;               // what the second digit of the lane is worth; 0: there is none

  __device__ FewDigits(const uint8_t* digits, int rows, int quads, int quad, int lane) {
    const int plane = few_plane_bytes(quads), row = min(lane % 4 / 2, rows - 1);
    planes = shared_address(digits) +
             (min(lane % 8 / 4, rows - 1) * kFewDigits + min(lane % 4, kFewDigits - 1)) * plane + lane / 8 * 16 +
             quad * 128;
    step = 2 * rows;
    numbers = reinterpret_cast<const float2*>(digits + rows * kFewDigits * plane) + quad * step + row * 2 + lane % 2;
    base = lane % 2 == 0 ? 256 : 0;
  }
  __device__ __forceinline__ FewDigits after(int quads) const {
    FewDigits there = *this;
    there.planes += quads * 128;
    there.numbers += quads * step;
    return there;
  }
};

// By a warp: one quad of a row. `x` points to its staged numbers, `planes` to its place in the row's first plane.
template <typename T>
__device__ __forceinline__ void few_write_digits(const uint8_t* x, uint8_t* planes, int plane, float2* numbers,
                                                 int lane) {
  constexpr uint32_t kOnes = 0x01010101, kInfinity = 0x7f800000;
  constexpr float kOffset = (1 << 23) + (1 << 22) + (1 << 15) + (1 << 7);  // digits plus 64, 128, 128 in the mantissa
  const auto* pair = reinterpret_cast<const uint32_t*>(x + lane / 4 * 32 + lane % 4 * 4);
  const uint32_t pairs[2] = {pair[0], pair[4]};
  const T* halves = reinterpret_cast<const T*>(pairs);
  float v[4], most = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[i] = to_float(halves[i / 2 + i % 2 * 2]);
    most = max_or_nan(most, fabsf(v[i]));
  }
  const uint32_t bits = warp_max(__float_as_uint(most));
  const uint32_t power = max((bits + (1 << 18)) >> 23, 127u - 105);
  const float factor = __uint_as_float(bits < kInfinity ? (power - 21) << 23 : 0x7fffffff);
  uint32_t q[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    q[i] = __float_as_uint(fmaf(v[i], __uint_as_float((2 * 127 + 21 - power) << 23), kOffset));
  const uint32_t low01 = __byte_perm(q[0], q[1], 0x5140), low23 = __byte_perm(q[2], q[3], 0x5140);
  const uint32_t top = __byte_perm(__byte_perm(q[0], q[1], 0x62), __byte_perm(q[2], q[3], 0x62), 0x5410);
  const uint32_t digit[kFewDigits] = {__byte_perm(low01, low23, 0x5410) ^ 0x80 * kOnes,
                                      __byte_perm(low01, low23, 0x7632) ^ 0x80 * kOnes,
                                      (top + 0x40 * kOnes) ^ 0x80 * kOnes};
  int sum[kFewDigits];
#pragma unroll
  for (int d = 0; d < kFewDigits; ++d) {
    *reinterpret_cast<uint32_t*>(planes + d * plane + lane * 4) = digit[d];
    sum[d] = __dp4a(static_cast<int>(digit[d]), static_cast<int>(kOnes), 0);
  }
  const int low = warp_sum(sum[0] + (sum[1] << 8)), high = warp_sum(sum[2]);
  if (lane < 2) numbers[lane] = {static_cast<float>(lane == 0 ? low : high), lane == 0 ? factor : factor * 65536.0f};
}

// Of all staged rows; all threads of the block call it.
template <typename T>
__device__ __forceinline__ void few_write_digits(const uint8_t* rows, uint8_t* digits, int M, int quads, int warp,
                                                 int warps, int lane) {
  const int plane = few_plane_bytes(quads);
  auto* numbers = reinterpret_cast<float2*>(digits + M * kFewDigits * plane);
#pragma unroll 1
  for (int row = 0; row < M; ++row) {
#pragma unroll 2
    for (int quad = warp; quad < quads; quad += warps)
      few_write_digits<T>(rows + row * few_row_bytes(quads) + quad * 256,
                          digits + row * kFewDigits * plane + quad * 128, plane, numbers + 2 * (quad * M + row), lane);
  }
}

// A quad of one group. From as in FewProduct.
template <int kBits, bool kZeros>
struct FewDigitProduct {
  using Codes = TinyCodes<kBits>;

  // total[v] += W^T x for column lane / 4 + 8 v: the lane's row and pair of digits, times 2^at(1, v). Calls arrived()
  // when the first tiles have been decoded.
  template <typename From, typename Arrived>
  __device__ __forceinline__ static void add(const From& from, const FewDigits& x, float (&total)[2], Arrived arrived) {
    constexpr int kStep = Codes::at(1, 0) - Codes::at(0, 0);  // from step 0's power to that of step 1
    static_assert(kStep == Codes::at(1, 1) - Codes::at(0, 1));
    int sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      unsigned a[2][4], b[4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const auto words = from.tile(i + j);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
          for (int v = 0; v < 2; ++v) a[s][2 * j + v] = Codes::bytes(words, s, v);
        }
      }
      load_matrices<false>(b, x.planes + i * 32);
#pragma unroll
      for (int s = 0; s < 2; ++s) multiply_add_bytes(sums[s], a[s], b[s], b[2 + s]);
      if (i == 0) arrived();
    }
    const float2 number = *x.numbers;
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      int whole[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) whole[s] = sums[s][2 * v] + x.base * sums[s][2 * v + 1];
      const float zero = (kZeros ? from.zero(0, v) : 1 << (kBits - 1)) * (1 << Codes::at(1, v));
      const float sum = fmaf(-zero, number.x, static_cast<float>(whole[1] + (whole[0] << kStep)));
      total[v] = fmaf(sum, from.scale(0, v) * number.y, total[v]);
    }
  }

  // The sums of rows 0 and 1, for lanes of lane % 4 = 0: {column lane / 4: row 0, 1; column lane / 4 + 8: row 0, 1}.
  __device__ static void finish(const float (&total)[2], float (&rows)[4]) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const float sum = total[v] * (1.0f / (1 << Codes::at(1, v)));
      rows[2 * v] = sum + __shfl_xor_sync(0xffffffffu, sum, 1);
      rows[2 * v + 1] = __shfl_xor_sync(0xffffffffu, rows[2 * v], 2);
    }
  }
};

}  // namespace nybble::cuda
