// Stored keys and values, 16 bytes of one token (a unit) at a time, made operands of a 16 x 16 product. In shared
// memory a token is a row of units; ldmatrix hands lane (g, t) 32 bits of each of two units of tokens g and g + 8.
//
// Keys: A is tokens x channels. The lane has 4 bytes of one token; which channels those are is left to
// `channel_of_key`, by which q is laid out, so that nothing is shuffled. Values: A is channels x tokens, loaded
// transposed: the lane has 2 bytes of one channel group g from each of tokens 2t and 2t + 1, so that neighbours in a
// register are the same channel.
//
//             16 bytes hold   a lane's 32 bits, keys        values (low half token 2t, high half token 2t + 1)
//   Plain      8 channels     2t, 2t + 1                    g
//   Bytes     16              4t ... 4t + 3                 2g, 2g + 1
//   Nibbles   32              8t ... 8t + 7                 4g ... 4g + 3
#pragma once
#include <cstdint>

#include "cuda/common/mma.cuh"

namespace nybble::cuda::paged {

template <typename Type>
struct Plain {
  using T = Type;
  static constexpr int kUnit = 8;  // channels of 16 bytes
  static constexpr bool kScaled = false;
  static constexpr bool kNative = true;  // q's own type: q is used as it is
  static constexpr int kProducts = 1;    // 16 x 16 operands that two units give

  // keys: r = unit 0 of tokens g, g + 8, unit 1 of the same. values: token half 0 of units 0, 1, half 1 of the same
  __device__ static void keys(const unsigned (&r)[4], unsigned (&a)[1][4]) {
    for (int i = 0; i < 4; ++i) a[0][i] = r[i];
  }
  __device__ static void values(const unsigned (&r)[4], unsigned (&a)[1][4]) { keys(r, a); }
  // The channel behind element e of B register j of product k of the keys, in lane t.
  __device__ static int channel_of_key(int k, int j, int t, int e) { return 16 * k + 8 * j + 2 * t + e; }
  // The channel behind row g + 8 high of product k of the values.
  __device__ static int channel_of_value(int k, int g, int high) { return 16 * k + 8 * high + g; }
};

// What Fp8 and Codes8 share. Decoded::pair(x, high) makes halves of bytes 0 and 2 (of bytes 1 and 3 if `high`) of x.
template <typename Decoded>
struct Bytes {
  using T = __half;
  static constexpr int kUnit = 16;
  static constexpr bool kNative = false;
  static constexpr int kProducts = 2;

  __device__ static void keys(const unsigned (&r)[4], unsigned (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2] = Decoded::template pair<0>(r[i]);
      a[i / 2][i % 2 + 2] = Decoded::template pair<1>(r[i]);
    }
  }
  __device__ static void values(const unsigned (&r)[4], unsigned (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i % 2][i / 2 * 2] = Decoded::template pair<0>(r[i]);
      a[i % 2][i / 2 * 2 + 1] = Decoded::template pair<1>(r[i]);
    }
  }
  __device__ static int channel_of_key(int k, int j, int t, int e) { return 16 * k + 4 * t + j + 2 * e; }
  __device__ static int channel_of_value(int k, int g, int high) { return 16 * k + 2 * g + high; }
};

struct Fp8 : Bytes<Fp8> {
  static constexpr bool kScaled = false;
  template <int high>
  __device__ static unsigned pair(unsigned x) {
    return high ? x & 0xff00ff00u : x << 8 & 0xff00ff00u;
  }
};

__device__ inline unsigned minus(unsigned a, unsigned b) {
  const __half2 v = __hsub2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
  return reinterpret_cast<const unsigned&>(v);
}

// Halves 0x6400 | n are 1024 + n for n below 1024: a code becomes a number by setting bits, and exactly.
struct Codes8 : Bytes<Codes8> {
  static constexpr bool kScaled = true;
  template <int high>
  __device__ static unsigned pair(unsigned x) {
    return minus(__byte_perm(x, 0x64646464u, high ? 0x4341 : 0x4240), 0x64806480u);  // 1024 + 128
  }
};

struct Codes4 {
  using T = __half;
  static constexpr int kUnit = 32;
  static constexpr bool kScaled = true;
  static constexpr bool kNative = false;
  static constexpr int kProducts = 4;

  // Nibbles (0, 4), (1, 5), (2, 6), (3, 7) of x, less 8.
  __device__ static void split(unsigned x, unsigned (&h)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i, x >>= 8) {
      h[2 * i] = minus((x & 0x000f000fu) | 0x64006400u, 0x64086408u);
      const unsigned high = (x & 0x00f000f0u) | 0x64006400u;  // 1024 + 16 code
      const __half2 v =
          __hfma2(reinterpret_cast<const __half2&>(high), __float2half2_rn(1.0f / 16), __float2half2_rn(-72.0f));
      h[2 * i + 1] = reinterpret_cast<const unsigned&>(v);
    }
  }
  __device__ static void keys(const unsigned (&r)[4], unsigned (&a)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned h[4];
      split(r[i], h);
#pragma unroll
      for (int n = 0; n < 4; ++n) a[i / 2 * 2 + n / 2][i % 2 + n % 2 * 2] = h[n];
    }
  }
  __device__ static void values(const unsigned (&r)[4], unsigned (&a)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned h[4];
      split(r[i], h);
#pragma unroll
      for (int n = 0; n < 4; ++n) a[i % 2 * 2 + n / 2][i / 2 * 2 + n % 2] = h[n];
    }
  }
  __device__ static int channel_of_key(int k, int j, int t, int e) {
    return 32 * (k / 2) + 8 * t + 2 * (k % 2) + j + 4 * e;
  }
  __device__ static int channel_of_value(int k, int g, int high) { return 32 * (k / 2) + 4 * g + 2 * (k % 2) + high; }
};

// One of keys and values in shared memory: kTokens rows of units, then their scales.
template <typename Storage, int D, int kTokens>
struct Tile {
  static constexpr int kUnits = D / Storage::kUnit;
  static constexpr int kScaleBytes = Storage::kScaled ? D / 32 * 2 : 0;  // of a token
  static constexpr int kBytes = kTokens * (kUnits * 16 + kScaleBytes);
  static_assert(D % Storage::kUnit == 0 && kUnits % 2 == 0, "units are loaded in pairs");

  // Units are exchanged within a row so that 8 neighbouring tokens' same unit lies in 8 different groups of 4 banks.
  static constexpr int kCycle = kUnits % 8 == 0 ? 8 : kUnits % 4 == 0 ? 4 : 2;  // divides kUnits, and 8
  __device__ static int place(int token, int unit) {
    return (token * kUnits + (unit ^ (token / (8 / kCycle) % kCycle))) * 16;
  }
  __device__ static constexpr int scales() { return kTokens * kUnits * 16; }
};

}  // namespace nybble::cuda::paged
