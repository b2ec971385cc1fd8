// Tiles of a packed matrix times a few rows of x, for one warp (sm_80 and later): the inner loop of few_registers.cuh
// and few_ring.cuh.
//
//   y^T = W^T x^T: a decoded tile is two operands A (16 columns of W by 16 k) as it stands, x^T is B (16 k by 8 rows)
//
//        16 k    16 k              8 rows
//      +-------+-------+          +------+
//      |   A   |   A   | 16       |  B   | 16 k     ldmatrix brings the B of a whole tile from x as it lies, row by
//      +-------+-------+ columns  +------+          row, in shared memory (few_rows.cuh)
//            a tile               |  B   | 16 k
//                                 +------+
//
// Codes less 2^(bits-1) are exact operands; a run of products is summed up, and the float32 sum is scaled. Other zeros
// never touch the codes: sums start at what they change. Codes of 2 and 3 bits are not converted at all where x is
// half (TinyCodes), and their zeros are others.
#pragma once
#include "cuda/codec/tile.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/qmatmul/few_rows.cuh"

namespace nybble::cuda {

// x in shared memory as a lane sees it, from some quad on.
struct FewOperand {
  unsigned x;           // what the lane hands to ldmatrix. 64 bytes further: the next k block
  const uint8_t* sums;  // of x: floats of the lane's two rows (few_rows.cuh)
  int sums_step;        // bytes to those of the next quad

  __device__ __forceinline__ FewOperand after(int quads) const {
    return {x + quads * 256, sums + quads * sums_step, sums_step};
  }
};

// A quad: four tiles that follow each other. kFine: each has a group of its own, or may have; else one has them all.
// From has tile(i), and scale(group, v) and zero(group, v) of column lane / 4 + 8 v.
template <typename T, int kBits, bool kFine, bool kZeros>
struct FewProduct {
  static constexpr bool kTiny = std::is_same_v<T, __half> && kBits <= 3 && !kFine;  // codes are not converted
  static constexpr float kMiddle = 1 << (kBits - 1);

  // total += W^T x. Calls arrived() when the first tile has been decoded.
  template <typename From, typename Arrived>
  __device__ __forceinline__ static void add(const From& from, const FewOperand& x, float (&total)[4],
                                             Arrived arrived) {
    if constexpr (kTiny)
      add_tiny(from, x, total, arrived);
    else if constexpr (kFine)
      add_fine(from, x, total);
    else
      add_coarse(from, x, total, arrived);
  }

 private:
  // even, odd += the products of a tile's two operands.
  __device__ __forceinline__ static void multiply(const TileLane<kBits>& words, unsigned x, float (&even)[4],
                                                  float (&odd)[4]) {
    unsigned w[8], b[4];
    if constexpr (kTiny) {
      TinyCodes<kBits>::decode(words, w);
    } else {
      typename Pair<T>::type pairs[8];
      decode<kBits, T, 1 << (kBits - 1)>(words, pairs);
#pragma unroll
      for (int j = 0; j < 8; ++j) w[j] = reinterpret_cast<const unsigned&>(pairs[j]);
    }
    load_matrices<false>(b, x);
    const unsigned first[4] = {w[0], w[1], w[2], w[3]}, second[4] = {w[4], w[5], w[6], w[7]};
    multiply_add<T>(even, first, b[0], b[1]);
    multiply_add<T>(odd, second, b[2], b[3]);
  }

  // sums = start * (sum of x), for columns lane / 4 and lane / 4 + 8.
  __device__ static void start(float (&sums)[4], float first, float second, const uint8_t* sum_of_x) {
    const auto sum = *reinterpret_cast<const float2*>(sum_of_x);
    sums[0] = first * sum.x, sums[1] = first * sum.y, sums[2] = second * sum.x, sums[3] = second * sum.y;
  }

  template <typename From, typename Arrived>
  __device__ __forceinline__ static void add_coarse(const From& from, const FewOperand& x, float (&total)[4],
                                                    Arrived arrived) {
    float even[4] = {}, odd[4] = {};  // two chains of products, not one
    if constexpr (kZeros) start(even, kMiddle - from.zero(0, 0), kMiddle - from.zero(0, 1), x.sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      multiply(from.tile(i), x.x + i * 64, even, odd);
      if (i == 0) arrived();
    }
    const float s[2] = {from.scale(0, 0), from.scale(0, 1)};
#pragma unroll
    for (int c = 0; c < 4; ++c) total[c] = fmaf(s[c / 2], even[c] + odd[c], total[c]);
  }

  template <typename From, typename Arrived>
  __device__ __forceinline__ static void add_tiny(const From& from, const FewOperand& x, float (&total)[4],
                                                  Arrived arrived) {
    using Codes = TinyCodes<kBits>;
    constexpr float kUnit[2] = {1.0f / Codes::power(0, 0), 1.0f / Codes::power(0, 1)};
    float even[4], odd[4] = {};
    if constexpr (kZeros)
      start(even, -from.zero(0, 0) * kUnit[0], -from.zero(0, 1) * kUnit[1], x.sums);
    else
      start(even, -kMiddle * kUnit[0], -kMiddle * kUnit[1], x.sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      multiply(from.tile(i), x.x + i * 64, even, odd);
      if (i == 0) arrived();
    }
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const float s = from.scale(0, v), s_even = s * Codes::power(0, v), s_odd = s * Codes::power(1, v);
#pragma unroll
      for (int c = 2 * v; c < 2 * v + 2; ++c) total[c] = fmaf(s_odd, odd[c], fmaf(s_even, even[c], total[c]));
    }
  }

  template <typename From>
  __device__ __forceinline__ static void add_fine(const From& from, const FewOperand& x, float (&total)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float sums[4] = {};
      if constexpr (kZeros)
        start(sums, kMiddle - from.zero(i, 0), kMiddle - from.zero(i, 1), x.sums + (1 + i) * (x.sums_step / kFewSums));
      multiply(from.tile(i), x.x + i * 64, sums, sums);
      const float s[2] = {from.scale(i, 0), from.scale(i, 1)};
#pragma unroll
      for (int c = 0; c < 4; ++c) total[c] = fmaf(s[c / 2], sums[c], total[c]);
    }
  }
};

}  // namespace nybble::cuda
