// Narrow codes times one or two rows of x in whole numbers, for few_registers.cuh and few_ring.cuh: masked out of their
// words four at a time, codes are operands of the int8 tensor cores as they stand.
//
//   x of a quad (128 k) in fixed point:  x = q 2^(e-21),  |q| < 2^22,  q = d0 + 2^8 d1 + 2^16 d2,  digits -128 ... 127
//
// where 2^e is the power of two below max|x| (that above, if max|x| is within 1/64 of it). x is off by at most
// 2^-22 * 2^e, float16 only where it is below 2^-11 max|x| and has more digits than fit; sums over the quad are exact.
// With an infinity or a NaN in it, a quad gives NaN. bfloat16 below 2^-105 counts from there.
//
//      digit d of row r, a plane: a byte to each k, in the order of bytes of A (TinyCodes::bytes)  | 16 bytes
//      ...
//      numbers: [quad][row]{for d0 and d1, for d2}{what to take off for a zero of 1, what products are worth}
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

__device__ __forceinline__ float2 load_pair(unsigned shared) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(shared) : "memory");
  return v;
}

// e + 127, of the largest |x|.
__device__ __forceinline__ uint32_t few_power(uint32_t bits) { return max((bits + (1 << 18)) >> 23, 127u - 105); }

// The digits of some rows as a lane sees them, from some quad on: addresses in shared memory.
struct FewDigits {
  unsigned planes;   // what the lane hands to ldmatrix: matrices are the halves of two tiles
  unsigned numbers;  // of the lane's row and pair of digits
  int step;          // bytes of them to the next quad
  int base;          // what the second digit of the lane is worth; 0: there is none

  __device__ FewDigits(unsigned digits, int rows, int quads, int quad, int lane) {
    const int plane = few_plane_bytes(quads), row = min(lane % 4 / 2, rows - 1);
    planes = digits + (min(lane % 8 / 4, rows - 1) * kFewDigits + min(lane % 4, kFewDigits - 1)) * plane +
             lane / 8 * 16 + quad * 128;
    step = rows * 16;
    numbers = digits + rows * kFewDigits * plane + quad * step + row * 16 + lane % 2 * 8;
    base = lane % 2 == 0 ? 256 : 0;
  }
  __device__ __forceinline__ FewDigits after(int quads) const {
    FewDigits there = *this;
    there.planes += quads * 128;
    there.numbers += quads * step;
    return there;
  }
};

// By 8 lanes that follow each other: a quad of a row. `x` points to the lane's 16 numbers, `plane` to their bytes in
// the first plane, if they are `there`. Answers the quad's numbers.
template <typename T>
__device__ __forceinline__ float4 few_write_digits(const uint8_t* x, uint8_t* plane, int plane_bytes, bool there) {
  using Two = typename Pair<T>::type;
  constexpr uint32_t kSign = 0x80808080;
  constexpr int kOffset = (1 << 23) + (1 << 22) + (1 << 15) + (1 << 7);  // digits plus 64, 128, 128 in the mantissa
  const uint4 all[2] = {reinterpret_cast<const uint4*>(x)[0], reinterpret_cast<const uint4*>(x)[1]};
  const Two* pairs = reinterpret_cast<const Two*>(all);
  Two most = __habs2(pairs[0]);
#pragma unroll
  for (int i = 1; i < 8; ++i) most = __hmax2_nan(most, __habs2(pairs[i]));
#pragma unroll
  for (int i = 1; i < 8; i *= 2) most = __hmax2_nan(most, __shfl_xor_sync(0xffffffffu, most, i));
  const uint32_t bits = __float_as_uint(max_or_nan(to_float(most.x), to_float(most.y))), power = few_power(bits);
  const float factor = __uint_as_float((2 * 127 + 21 - power) << 23);
  uint32_t digit[kFewDigits][4];
  int sum = -16 * __float_as_int(static_cast<float>(kOffset));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T v[4] = {pairs[i].x, pairs[i].y, pairs[i + 4].x, pairs[i + 4].y};
    uint32_t q[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      q[j] = __float_as_uint(fmaf(to_float(v[j]), factor, kOffset));
      sum += q[j];
    }
    const uint32_t low02 = __byte_perm(q[0], q[2], 0x5140), low13 = __byte_perm(q[1], q[3], 0x5140);
    const uint32_t top = __byte_perm(__byte_perm(q[0], q[2], 0x62), __byte_perm(q[1], q[3], 0x62), 0x5410);
    digit[0][i] = __byte_perm(low02, low13, 0x5410) ^ kSign;
    digit[1][i] = __byte_perm(low02, low13, 0x7632) ^ kSign;
    digit[2][i] = (top + kSign / 2) ^ kSign;
  }
#pragma unroll
  for (int d = 0; d < kFewDigits; ++d) {
    if (there)
      *reinterpret_cast<uint4*>(plane + d * plane_bytes) = {digit[d][0], digit[d][1], digit[d][2], digit[d][3]};
  }
#pragma unroll
  for (int i = 1; i < 8; i *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  const int low = static_cast<int16_t>(sum);  // the sums of d0 + 2^8 d1 and of d2, or as good as these
  const float unit = __uint_as_float(bits < 0x7f800000 ? power - 21 << 23 : 0x7fffffff);
  return {static_cast<float>(low), unit, static_cast<float>((sum - low) >> 16), unit * 65536.0f};
}

// Of all staged rows; all threads of the block call it.
template <typename T>
__device__ __forceinline__ void few_write_digits(const uint8_t* rows, uint8_t* digits, int M, int quads, int warp,
                                                 int warps, int lane) {
  const int plane = few_plane_bytes(quads);
#pragma unroll 1
  for (int row = 0; row < M; ++row) {
#pragma unroll 1
    for (int first = 4 * warp; first < quads; first += 4 * warps) {
      const int quad = first + lane / 8;
      const bool there = quad < quads;
      const uint8_t* x = rows + row * few_row_bytes(quads) + min(quad, quads - 1) * 256 + lane % 8 * 32;
      uint8_t* to = digits + row * kFewDigits * plane + quad * 128 + lane % 8 * 16;
      const float4 numbers = few_write_digits<T>(x, to, plane, there);
      if (there && lane % 8 == 0)
        *reinterpret_cast<float4*>(digits + M * kFewDigits * plane + (quad * M + row) * 16) = numbers;
    }
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
    const float2 number = load_pair(x.numbers);
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
