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
  static constexpr int kTeam = 1;
  static constexpr int kProducts = 1;  // 16 x 16 operands that two units give

  // keys: r = unit 0 of tokens g, g + 8, unit 1 of the same. values: token half 0 of units 0, 1, half 1 of the same
  __device__ static void keys(const unsigned (&r)[4], unsigned (&a)[1][4]) {
    for (int i = 0; i < 4; ++i) a[0][i] = r[i];
  }
  __device__ static void values(const unsigned (&r)[4], unsigned (&a)[1][4]) { keys(r, a); }
  // q as the other operand of kProducts / 2 products beside each other (of one, here): from one row of it in shared
  // memory, 2 * kUnit channels on from `q`, what lane t needs.
  __device__ static void queries(const unsigned* q, int t, unsigned (&b)[1][2]) {
    b[0][0] = q[t];
    b[0][1] = q[t + 4];
  }
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
  __device__ static void queries(const unsigned* q, int t, unsigned (&b)[2][2]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint2 v = *reinterpret_cast<const uint2*>(q + 8 * k + 2 * t);  // channels 4t ... 4t + 3
      b[k][0] = __byte_perm(v.x, v.y, 0x5410);
      b[k][1] = __byte_perm(v.x, v.y, 0x7632);
    }
  }
  __device__ static int channel_of_value(int k, int g, int high) { return 16 * k + 2 * g + high; }
};

struct Fp8 : Bytes<Fp8> {
  static constexpr bool kScaled = false;
  static constexpr int kTeam = 1;
  template <int high>
  __device__ static unsigned pair(unsigned x) {
    return high ? x & 0xff00ff00u : x << 8 & 0xff00ff00u;
  }
};

// Codes become halves by masking alone: a half whose upper bits are 0 is its lower bits times 2^-24, and the tensor
// cores take such subnormal numbers exactly. What is left undone is done to sums instead of elements: 2^24 (kCodeUnit)
// times the sum, and the codes' zero point, 2^-24 kZero, is taken off through one more product with a constant first
// operand, `zeros`. kHigh: operand registers made of high bits are that many times too large.
constexpr float kCodeUnit = 16777216.0f;

struct Codes8 : Bytes<Codes8> {
  static constexpr bool kScaled = true;
  static constexpr int kTeam = 8;
  static constexpr int kZero = 128, kHigh = 1;
  template <int high>
  __device__ static unsigned pair(unsigned x) {
    return high ? __byte_perm(x, 0, 0x4341) : x & 0x00ff00ffu;
  }
};

struct Codes4 {
  using T = __half;
  static constexpr int kUnit = 32;
  static constexpr bool kScaled = true;
  static constexpr bool kNative = false;
  static constexpr int kProducts = 4;
  static constexpr int kTeam = 1;
  static constexpr int kZero = 8, kHigh = 16;

  // Nibbles (0, 4), (1, 5), (2, 6), (3, 7) of x; of the second and the fourth the upper ones of a byte.
  __device__ static void split(unsigned x, unsigned (&h)[4]) {
    h[0] = x & 0x000f000fu;
    h[1] = x & 0x00f000f0u;
    h[2] = x >> 8 & 0x000f000fu;
    h[3] = x >> 8 & 0x00f000f0u;
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
  __device__ static void queries(const unsigned* q, int t, unsigned (&b)[4][2]) {
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      const uint4 v = *reinterpret_cast<const uint4*>(q + 16 * unit + 4 * t);  // channels 8t ... 8t + 7
      b[2 * unit][0] = __byte_perm(v.x, v.z, 0x5410);
      b[2 * unit][1] = sixteenth(__byte_perm(v.x, v.z, 0x7632));
      b[2 * unit + 1][0] = __byte_perm(v.y, v.w, 0x5410);
      b[2 * unit + 1][1] = sixteenth(__byte_perm(v.y, v.w, 0x7632));
    }
  }
  __device__ static unsigned sixteenth(unsigned a) {
    const __half2 v = __hmul2(reinterpret_cast<const __half2&>(a), __float2half2_rn(1.0f / kHigh));
    return reinterpret_cast<const unsigned&>(v);
  }
  __device__ static int channel_of_value(int k, int g, int high) { return 32 * (k / 2) + 4 * g + 2 * (k % 2) + high; }
};

// The first operand whose every number is the negative zero point. Registers 2 and 3 of keys hold high bits, of values
// registers 1 and 3.
template <typename Storage>
__device__ inline void zero_points(bool keys, unsigned (&a)[4]) {
  constexpr unsigned low = 0x80008000u | Storage::kZero * 0x10001u;
  constexpr unsigned high = 0x80008000u | Storage::kZero * Storage::kHigh * 0x10001u;
  a[0] = low;
  a[1] = keys ? low : high;
  a[2] = keys ? high : low;
  a[3] = high;
}

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
  // From place(token, unit < 2) in a tile at `address` to unit + u, u even; tokens 16 further lie 16 rows further.
  static constexpr int kAligned = kCycle * 16;
  __device__ static unsigned step(unsigned address, int u) {
    return (address ^ u % kCycle * 16) + u / kCycle * kCycle * 16;
  }
  __device__ static constexpr int scales() { return kTokens * kUnits * 16; }
};

}  // namespace nybble::cuda::paged
