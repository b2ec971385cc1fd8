// A tile's two products, on tensor cores: scores of 16 tokens for 8 query rows, and their weights on the values.
//
// Codes are never scaled one by one: the scale of 32 channels multiplies their part of a score, and the weight of a
// token before it meets the values. Rotated keys meet a rotated q, since q . (R k) = (R q) . k; rotated values give a
// rotated sum, which `combine` turns back once.
#pragma once
#include "cuda/paged_attention/loader.cuh"
#include "cuda/paged_attention/queries.cuh"

namespace nybble::cuda::paged {

// Neighbouring words from an address that is a multiple of their size, or of 16.
template <int kWords>
__device__ inline void read_words(unsigned (&words)[kWords], const char* from) {
  if constexpr (kWords == 1) {
    words[0] = *reinterpret_cast<const unsigned*>(from);
  } else if constexpr (kWords == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    words[0] = v.x, words[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(from)[i];
      words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
  }
}

// What a lane reads of each tile, in bytes from where the tile begins: found once, and kept.
template <typename S>
struct Places {
  unsigned keys, values, key_scales, value_scales;

  __device__ Places() {
    const int lane = threadIdx.x % 32;
    keys = keep(S::Keys::place(lane % 16, lane / 16));
    values = keep(S::Values::place(lane % 8 + lane / 16 * 8, lane / 8 % 2));
    key_scales = keep(S::Keys::scales() + lane / 4 * S::Keys::kScaleBytes);
    value_scales = keep(S::Values::scales() + lane % 4 * 2 * S::Values::kScaleBytes);
  }
  // The compiler would rather find them again for every tile.
  __device__ static unsigned keep(unsigned v) {
    asm volatile("" : "+r"(v));
    return v;
  }
};

// Half of a warp's tile: scores of 16 tokens. `keys`, `scales`: this lane's place, of the tile's first half.
template <typename S, typename Storage>
__device__ inline void find_scores(float (&scores)[4], unsigned keys, const char* scales, int first,
                                   const Queries<Storage, S::D>& q) {
  using Tile = typename S::Keys;
  constexpr int kSums = 2;  // beside each other, as a product waits for the one it adds to
  float sums[kSums][4] = {};
  float scale[2][S::D / 32];
  if constexpr (Storage::kScaled) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned words[S::D / 64];
      read_words(words, scales + (first + 8 * i) * Tile::kScaleBytes);
#pragma unroll
      for (int c = 0; c < S::D / 64; ++c) {
        const float2 two = __half22float2(reinterpret_cast<const __half2&>(words[c]));
        scale[i][2 * c] = two.x;
        scale[i][2 * c + 1] = two.y;
      }
    }
  }
#pragma unroll
  for (int u = 0; u < Tile::kUnits; u += 2) {
    unsigned r[4], a[Storage::kProducts][4];
    load_matrices<false>(r, Tile::step(keys, u) + first * Tile::kUnits * 16);
    Storage::keys(r, a);
    const int k = u / 2 * Storage::kProducts;
    if constexpr (Storage::kScaled) {
#pragma unroll
      for (int i = 0; i < Storage::kProducts; i += 2) {  // 32 channels
        float part[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) part[j] = q.zero[(k + i) / 2][j];
        multiply_add<typename Storage::T>(part, a[i], q.operand[k + i][0], q.operand[k + i][1]);
        multiply_add<typename Storage::T>(part, a[i + 1], q.operand[k + i + 1][0], q.operand[k + i + 1][1]);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[0][j] += part[j] * scale[j / 2][(k + i) / 2];
      }
    } else {
#pragma unroll
      for (int i = 0; i < Storage::kProducts; ++i)
        multiply_add<typename Storage::T>(sums[(k + i) % kSums], a[i], q.operand[k + i][0], q.operand[k + i][1]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) scores[j] = Storage::kScaled ? sums[0][j] : sums[0][j] + sums[1][j];
}

template <typename Storage, int D>
struct Sums {
  float values[D / 16][4] = {};
  // Of codes: what their zero point takes off; of kOneZero: the sum of a row's weights times scales, row g for group g
  // of 32 channels.
  static constexpr bool kOneZero = Storage::kScaled && Storage::kUnit == 32;
  float zero[Storage::kScaled && !kOneZero ? D / 32 : 1][4] = {};

  __device__ void fade(int c, float factor) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) values[k][c] *= factor, values[k][c + 2] *= factor;
    if constexpr (kOneZero) {
      zero[0][c] *= factor;
    } else if constexpr (Storage::kScaled) {
#pragma unroll
      for (int k = 0; k < D / 32; ++k) zero[k][c] *= factor, zero[k][c + 2] *= factor;
    }
  }
  // Row g (g + 8 if high) of product k, column 2t + c. The whole warp calls it.
  __device__ float get(int k, int c, int high) const {
    if constexpr (kOneZero) {
      const float all = __shfl_sync(0xffffffffu, zero[0][c], k / 2 * 4 + static_cast<int>(threadIdx.x % 4));
      return values[k][c + 2 * high] * (high ? kCodeUnit / Storage::kHigh : kCodeUnit) - Storage::kZero * all;
    } else if constexpr (Storage::kScaled)
      return (values[k][c + 2 * high] + zero[k / 2][c + 2 * high]) * (high ? kCodeUnit / Storage::kHigh : kCodeUnit);
    else
      return values[k][c + 2 * high];
  }
};

// Of two tokens' scales, kWords words each, those of group g beside each other; rows of no group get any.
template <int kWords>
__device__ inline unsigned scales_of_group(const unsigned (&words)[2 * kWords]) {
  const int g = threadIdx.x % 32 / 4;
  const unsigned select = 0x10 + 0x22 * (g % 4);  // half g % 4 of two words
  const auto half = [&](const unsigned* of_token) {
    const unsigned low = __byte_perm(of_token[0], of_token[kWords > 1 ? 1 : 0], select);
    if constexpr (kWords < 4) return low;
    return g < 4 ? low : __byte_perm(of_token[2], of_token[3], select);
  };
  return __byte_perm(half(words), half(words + kWords), 0x5410);
}

// sums += V^T P over 16 tokens; weights are P's two registers; `values`, `scales` as above.
template <typename S, typename Storage>
__device__ inline void add_values(Sums<Storage, S::D>& sums, unsigned values, const char* scales, int first,
                                  const unsigned (&weights)[2]) {
  using Tile = typename S::Values;
  using Sum = Sums<Storage, S::D>;
  unsigned scaled[S::D / 32][2], of_group[4] = {};  // of_group: scales, row g those of group g, as a first operand
  if constexpr (Storage::kScaled) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned words[S::D / 32];  // of two tokens
      read_words(words, scales + (first + 8 * i) * Tile::kScaleBytes);
      if constexpr (Sum::kOneZero) of_group[2 * i] = scales_of_group<S::D / 64>(words);
#pragma unroll
      for (int c = 0; c < S::D / 64; ++c)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const unsigned two = __byte_perm(words[c], words[c + S::D / 64], side ? 0x7632 : 0x5410);
          const __half2 v =
              __hmul2(reinterpret_cast<const __half2&>(two), reinterpret_cast<const __half2&>(weights[i]));
          scaled[2 * c + side][i] = reinterpret_cast<const unsigned&>(v);
        }
    }
    if constexpr (Sum::kOneZero) {
      multiply_add<typename Storage::T>(sums.zero[0], of_group, weights[0], weights[1]);
    } else {
      unsigned zeros[4];
      zero_points<Storage>(false, zeros);
#pragma unroll
      for (int c = 0; c < S::D / 32; ++c)
        multiply_add<typename Storage::T>(sums.zero[c], zeros, scaled[c][0], scaled[c][1]);
    }
  }
#pragma unroll
  for (int u = 0; u < Tile::kUnits; u += 2) {
    unsigned r[4], a[Storage::kProducts][4];
    load_matrices<true>(r, Tile::step(values, u) + first * Tile::kUnits * 16);
    Storage::values(r, a);
#pragma unroll
    for (int i = 0; i < Storage::kProducts; ++i) {
      const int k = u / 2 * Storage::kProducts + i;
      if constexpr (Storage::kScaled)
        multiply_add<typename Storage::T>(sums.values[k], a[i], scaled[k / 2][0], scaled[k / 2][1]);
      else
        multiply_add<typename Storage::T>(sums.values[k], a[i], weights[0], weights[1]);
    }
  }
}

}  // namespace nybble::cuda::paged
