// Codes of 4 bits, less their zero, times their scale: in half by one multiply-add where the zero is 8.
//
// A code's bits alone are a half below the smallest normal one, code * 2^-24, or 2^-20 for the lane's second column,
// whose codes lie four bits further up. The scale takes the power back; but it may become more than a half holds. So
// each column of W has a power of two of its own: scales are multiplied by it to lie well within a half, the column's
// sums are larger by as much, and where a scale does not fit, the sums are brought to another power. What the tensor
// cores get is (code - 8) * scale, rounded once, times a power of two; with zeros of their own it is rounded twice.
#pragma once
#include "cuda/codec/scaled.cuh"

namespace nybble::cuda::wide {

class Powers {
  __half2 first, second;  // of both columns; the power is their product
  uint32_t looked_at;     // of exponents: none of columns beyond the last

  __device__ static float two_to(int exponent) { return __uint_as_float((127 + exponent) << 23); }
  // a / b of powers of two.
  __device__ static float ratio(float a, float b) {
    return __uint_as_float(__float_as_uint(a) - __float_as_uint(b) + __float_as_uint(1.0f));
  }

  // The power by which sums are what they should be.
  __device__ static float plain(int v) { return v == 0 ? 0x1p24f : 0x1p20f; }
  __device__ float power(int v) const {
    return v == 0 ? __low2float(first) * __low2float(second) : __high2float(first) * __high2float(second);
  }

  template <int kSums>
  __device__ static void enlarge(float (&sums)[kSums], const float (&by)[2]) {
#pragma unroll
    for (int j = 0; j < kSums; ++j) sums[j] *= by[j / 2 % 2];
  }

 public:
  struct Less {
    __half2 most, rest;  // of both columns
  };

  // `columns`: how many of the tile's are of W.
  __device__ void begin(int columns) {
    first = second = __floats2half2_rn(0x1p12f, 0x1p10f);
    const int own = threadIdx.x % 32 / 4;
    looked_at = own + 8 < columns ? 0xe000e000 : own < columns ? 0xe000 : 0;
  }

  // The scales as decode() takes them, if they fit.
  __device__ __half2 scaled(const Numbers& n) const {
    return __hmul2(__hmul2(__halves2half2(n.scale[0], n.scale[1]), first), second);
  }

  // Both from 2^8 to less than 2^16: exponents 23 to 30, of which the next begins with 11. Below, what is left of them
  // and of the product would be rounded more coarsely; above is no half.
  __device__ bool fit(__half2 scaled) const {
    const uint32_t next = (reinterpret_cast<const uint32_t&>(scaled) & 0x7fff7fff) + 0x04000400;
    return ((next ^ 0x60006000) & looked_at) == 0;
  }

  // Powers that bring the scales that do not fit to between 2^11 and 2^12, as far as there are such. A zero goes with
  // any power.
  template <int kSums>
  __device__ void change(const Numbers& n, float (&sums)[kSums]) {
    const __half2 now = scaled(n);
    const float two[2] = {fabsf(__low2float(now)), fabsf(__high2float(now))};
    float by[2], one[2], other[2];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const float scale = fabsf(__half2float(n.scale[v]));
      by[v] = 1.0f;
      one[v] = v == 0 ? __low2float(first) : __high2float(first);
      other[v] = v == 0 ? __low2float(second) : __high2float(second);
      if (!(two[v] >= 0x1p8f && two[v] < 0x1p16f) && scale > 0.0f && scale < 0x1p16f) {
        const int exponent = min(11 - (static_cast<int>(__float_as_uint(scale) >> 23) - 127), 30);
        const float before = one[v] * other[v];
        one[v] = two_to(min(exponent, 15)), other[v] = two_to(max(exponent - 15, 0));
        by[v] = ratio(one[v] * other[v], before);
      }
    }
    first = __floats2half2_rn(one[0], one[1]), second = __floats2half2_rn(other[0], other[1]);
    enlarge(sums, by);
  }

  // The sums as they should be, for the last time.
  template <int kSums>
  __device__ void take_back(float (&sums)[kSums]) const {
    const float by[2] = {ratio(plain(0), power(0)), ratio(plain(1), power(1))};
    enlarge(sums, by);
  }

  // What is to be added to the codes so multiplied: -zero * scale, with zeros of their own in two parts.
  template <bool kZeros>
  __device__ static Less less(const Numbers& n, __half2 scaled) {
    if constexpr (!kZeros) return {__hmul2(scaled, __floats2half2_rn(-0x1p-21f, -0x1p-17f)), {}};
    const float low = n.zero[0] * (__low2float(scaled) * -0x1p-24f);
    const float high = n.zero[1] * (__high2float(scaled) * -0x1p-20f);
    const __half2 most = __floats2half2_rn(low, high);
    return {most, __floats2half2_rn(low - __low2float(most), high - __high2float(most))};
  }

  // out[4 s ... 4 s + 3] are a0 ... a3 of step s.
  template <bool kZeros>
  __device__ static void decode(const TileLane<4>& words, __half2 scaled, const Less& added, uint32_t (&out)[8]) {
    const __half2 scale[2] = {__low2half2(scaled), __high2half2(scaled)};
    const __half2 most[2] = {__low2half2(added.most), __high2half2(added.most)};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t word = j % 4 < 2 ? words.word[j / 4] : words.word[j / 4] >> 8;
      const uint32_t code = word & (j % 2 == 0 ? 0x000f000f : 0x00f000f0);
      __half2 v = __hfma2(reinterpret_cast<const __half2&>(code), scale[j % 2], most[j % 2]);
      if constexpr (kZeros) v = __hadd2(v, j % 2 == 0 ? __low2half2(added.rest) : __high2half2(added.rest));
      out[j] = reinterpret_cast<const uint32_t&>(v);
    }
  }
};

}  // namespace nybble::cuda::wide
