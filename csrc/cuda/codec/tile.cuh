// One tile of a packed matrix, 32 rows (k) of 16 columns (n), as the lanes of a warp hold it: 16 codes a lane in `bits`
// words of 16 bits, and their way to pairs of numbers that are operands of mma.m16n8k16 (and of wgmma with A from
// registers) as they stand.
//
//   lane 4 g + t, pair 4 s + 2 u + v, half h: row k = 16 s + 8 u + 2 t + h of column n = 8 v + g
//
// so pairs 4 s ... 4 s + 3 are a0 ... a3 of the operand A[n][k] of step s. Where each bit lies is the table PARTS of
// nybble/ops/tiles.py, drawn in docs/formats/packed.md. No memory access but in load().
//
// From code to number: the code's bits are put into the mantissa of a power of two (1024 for half, 128 for bfloat16),
// which gives 1024 + code * 2^p exactly, and one multiply-add brings it home. A field at bit 4 of a word needs no
// shift: p is 4.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace nybble::cuda {

constexpr int kTileRows = 32, kTileColumns = 16;

// A lane's words of a tile. When loaded, one of 16 bits is spread over bytes 0 and 2, one that two lanes share over
// bits 2 to 5 of each byte (the others are the other lane's).
template <int kBits>
struct TileLane {
  static constexpr int kFirst = kBits == 8 ? 4 : kBits >= 4 ? 2 : 1;  // words of the first part
  static constexpr bool kShared = kBits == 3;                         // the second part: a word to two lanes
  static constexpr int kSecondBytes = kBits == 6 ? 4 : kBits == 5 || kShared ? 2 : 0;
  uint32_t word[kFirst + (kSecondBytes > 0 ? 1 : 0)];

  // `tile` points to the tile's 64 * kBits bytes, in shared or global memory, 16-byte aligned or better for 8 bits, 8
  // for the rest.
  __device__ void load(const uint8_t* tile, int lane) {
    if constexpr (kFirst == 4) {
      const uint4 v = reinterpret_cast<const uint4*>(tile)[lane];
      word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
    } else if constexpr (kFirst == 2) {
      const uint2 v = reinterpret_cast<const uint2*>(tile)[lane];
      word[0] = v.x, word[1] = v.y;
    } else {
      word[0] = reinterpret_cast<const uint32_t*>(tile)[lane];
    }
    const uint8_t* second = tile + 128 * kFirst;
    if constexpr (kShared)
      word[kFirst] = reinterpret_cast<const uint32_t*>(second)[lane / 2];
    else if constexpr (kSecondBytes == 4)
      word[kFirst] = reinterpret_cast<const uint32_t*>(second)[lane];
    else if constexpr (kSecondBytes == 2)
      word[kFirst] = reinterpret_cast<const uint16_t*>(second)[lane];
    spread(lane);
  }

  // Brings the word of the second part to where its fields are expected.
  __device__ void spread(int lane) {
    if constexpr (kShared)
      word[kFirst] = __funnelshift_r(word[kFirst], word[kFirst], lane % 2 * 4);
    else if constexpr (kSecondBytes == 2)
      word[kFirst] = __byte_perm(word[kFirst], 0, 0x4140);
  }
};

template <typename T>
struct Pair;  // two numbers in 32 bits, and the power of two whose mantissa takes a code

template <>
struct Pair<__half> {
  using type = __half2;
  static constexpr uint32_t kMagic = 0x64006400;
  static constexpr int kMantissa = 10;
  __device__ static __half2 both(float v) { return __float2half2_rn(v); }
};

template <>
struct Pair<__nv_bfloat16> {
  using type = __nv_bfloat162;
  static constexpr uint32_t kMagic = 0x43004300;
  static constexpr int kMantissa = 7;
  __device__ static __nv_bfloat162 both(float v) { return __float2bfloat162_rn(v); }
};

namespace codec {

// How far a word is shifted before a field at `at` is cut out, so that it ends within the mantissa; the same for
// neighbours.
template <typename T, int kBits>
__host__ __device__ constexpr int shift_of(int at) {
  constexpr int room = Pair<T>::kMantissa;
  if (at + kBits <= room) return 0;
  int first = 0;  // the first field that does not fit without a shift
  while (first + kBits <= room) first += kBits;
  while (at - first + kBits > room) first += kBits;
  return first < at ? first : at;
}

// (word & mask) | magic as the one instruction it is: left to itself, the compiler makes two of two constants.
__device__ inline uint32_t masked(uint32_t word, uint32_t mask, uint32_t magic) {
#ifdef __HIP__
  return (word & mask) | magic;
#else
  uint32_t value;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(value) : "r"(word), "r"(mask), "r"(magic));
  return value;
#endif
}

// The pair whose codes are whole, at `kAt` in both halves of `word`, less kZero. All constants are small integers times
// powers of two: nothing rounds.
template <typename T, int kBits, int kAt, int kZero>
__device__ typename Pair<T>::type number(uint32_t word) {
  using P = typename Pair<T>::type;
  constexpr int shift = shift_of<T, kBits>(kAt), p = kAt - shift;
  constexpr uint32_t mask = ((1u << kBits) - 1) << p;
  constexpr float base = 1 << Pair<T>::kMantissa;
  const uint32_t value = masked(word >> shift, mask | mask << 16, Pair<T>::kMagic);
  const P v = reinterpret_cast<const P&>(value);
  if constexpr (p == 0) return __hsub2(v, Pair<T>::both(base + kZero));
  return __hfma2(v, Pair<T>::both(1.0f / (1 << p)), Pair<T>::both(-base / (1 << p) - kZero));
}

// A pair whose bits were put together in `code` (both halves), less kZero.
template <typename T, int kZero>
__device__ typename Pair<T>::type gathered(uint32_t code) {
  using P = typename Pair<T>::type;
  const uint32_t value = code | Pair<T>::kMagic;
  return __hsub2(reinterpret_cast<const P&>(value), Pair<T>::both((1 << Pair<T>::kMantissa) + kZero));
}

// `count` bits at `at` of both halves, moved to bit `to`.
__device__ inline uint32_t cut(uint32_t word, int at, int count, int to) {
  const uint32_t mask = ((1u << count) - 1) << to;
  return (at >= to ? word >> (at - to) : word << (to - at)) & (mask | mask << 16);
}

// Pairs 5 and 7 of 3 bits, at bits 5 to 7 of the bytes: two bits of the first word, one of the second.
__device__ inline uint32_t last_codes(const TileLane<3>& lane) {
  return masked(lane.word[0], 0xc0c0c0c0, lane.word[1] & 0x20202020);
}

}  // namespace codec

// out[j] = pair j, code - kZero, exact. kZero is 2^(bits-1) where the matrix has no zeros, 0 where they are taken off
// later.
template <int kBits, typename T, int kZero>
__device__ void decode(const TileLane<kBits>& lane, typename Pair<T>::type (&out)[8]) {
  using namespace codec;
  const auto& w = lane.word;
  if constexpr (kBits == 2) {
    out[0] = number<T, 2, 0, kZero>(w[0]);
    out[1] = number<T, 2, 2, kZero>(w[0]);
    out[2] = number<T, 2, 8, kZero>(w[0]);
    out[3] = number<T, 2, 10, kZero>(w[0]);
    out[4] = number<T, 2, 4, kZero>(w[0]);
    out[5] = number<T, 2, 6, kZero>(w[0]);
    out[6] = number<T, 2, 12, kZero>(w[0]);
    out[7] = number<T, 2, 14, kZero>(w[0]);
  } else if constexpr (kBits == 3) {
    const uint32_t last = last_codes(lane);
    out[0] = number<T, 3, 0, kZero>(w[0]);
    out[1] = number<T, 3, 3, kZero>(w[0]);
    out[2] = number<T, 3, 0, kZero>(w[0] >> 8);
    out[3] = number<T, 3, 3, kZero>(w[0] >> 8);
    out[4] = number<T, 3, 2, kZero>(w[1]);
    out[5] = number<T, 3, 5, kZero>(last);
    out[6] = number<T, 3, 2, kZero>(w[1] >> 8);
    out[7] = number<T, 3, 5, kZero>(last >> 8);
  } else if constexpr (kBits == 4) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      out[4 * s] = number<T, 4, 0, kZero>(w[s]);
      out[4 * s + 1] = number<T, 4, 4, kZero>(w[s]);
      out[4 * s + 2] = number<T, 4, 8, kZero>(w[s]);
      out[4 * s + 3] = number<T, 4, 12, kZero>(w[s]);
    }
  } else if constexpr (kBits == 5) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      out[3 * s] = number<T, 5, 0, kZero>(w[s]);
      out[3 * s + 1] = number<T, 5, 5, kZero>(w[s]);
      out[3 * s + 2] = number<T, 5, 10, kZero>(w[s]);
    }
    out[6] = number<T, 5, 0, kZero>(w[2]);
    out[7] = gathered<T, kZero>(cut(w[2], 5, 3, 0) | cut(w[0], 15, 1, 3) | cut(w[1], 15, 1, 4));
  } else if constexpr (kBits == 6) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      out[2 * i] = number<T, 6, 0, kZero>(w[i]);
      out[2 * i + 1] = number<T, 6, 6, kZero>(w[i]);
    }
    out[6] = gathered<T, kZero>(cut(w[0], 12, 4, 0) | cut(w[2], 12, 2, 4));
    out[7] = gathered<T, kZero>(cut(w[1], 12, 4, 0) | cut(w[2], 14, 2, 4));
  } else if constexpr (Pair<T>::kMantissa >= 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = number<T, 8, 0, kZero>(w[i]);
      out[2 * i + 1] = number<T, 8, 8, kZero>(w[i]);
    }
  } else {  // eight bits do not fit bfloat16's mantissa beside a leading one: by way of float, 2^23 + code
    constexpr float base = (1 << 23) + kZero;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float low = __uint_as_float(__byte_perm(w[j / 2], 0x4b000000, 0x7440 + j % 2)) - base;
      const float high = __uint_as_float(__byte_perm(w[j / 2], 0x4b000000, 0x7442 + j % 2)) - base;
      out[j] = __floats2bfloat162_rn(low, high);
    }
  }
}

// Narrow codes without the arithmetic: left where they lie in their half or byte, and the power of two that this takes
// is made good later.
template <int kBits>
struct TinyCodes {
  static_assert(kBits == 2 || kBits == 3);

  // The bit of pairs 4 s + v and 4 s + 2 + v; these lie 8 bits further.
  __host__ __device__ static constexpr int at(int s, int v) {
    constexpr int kAt[2][2][2] = {{{0, 2}, {4, 6}}, {{0, 3}, {2, 5}}};
    return kAt[kBits - 2][s][v];
  }

  // A code's bits alone are a half below the smallest normal one, which tensor cores take as exactly as any other.
  // out[4 s + 2 u + v] = code / power(s, v).
  __host__ __device__ static constexpr float power(int s, int v) { return static_cast<float>(1 << (24 - at(s, v))); }

  __device__ static void decode(const TileLane<kBits>& lane, uint32_t (&out)[8]) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const uint32_t word = word_of(lane, s, v), mask = ((1u << kBits) - 1) * 0x10001u << at(s, v);
        out[4 * s + v] = word & mask;
        out[4 * s + 2 + v] = word >> 8 & mask;
      }
    }
    if constexpr (kBits == 3) out[7] = __byte_perm(codec::last_codes(lane), 0, 0x4341);  // nothing else is left there
  }

  // The four codes of a lane that belong to step s and column lane / 4 + 8 v as bytes, times 2^at(s, v): of pair
  // 4 s + v and the one 2 further the low halves, then the high ones.
  __device__ static uint32_t bytes(const TileLane<kBits>& lane, int s, int v) {
    return word_of(lane, s, v) & ((1u << kBits) - 1) * 0x1010101u << at(s, v);
  }

 private:
  __device__ static uint32_t word_of(const TileLane<kBits>& lane, int s, int v) {
    if constexpr (kBits == 3) {
      if (s == 1) return v == 0 ? lane.word[1] : codec::last_codes(lane);
    }
    return lane.word[0];
  }
};

}  // namespace nybble::cuda
