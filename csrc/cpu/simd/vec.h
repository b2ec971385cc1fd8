// One vector of floats, `Vec`, with the same members for every instruction set, and the math built on them.
// Everything lives in namespace nybble::cpu::NYBBLE_ISA: a function that two instruction sets shared by name would be
// merged by the linker, and an old CPU could then run the new one's code.
#pragma once
#include <cstdint>
#include <cstring>

#include "ops/problem.h"

#ifndef NYBBLE_ISA
#define NYBBLE_ISA generic
#endif

#define NYBBLE_JOIN_(a, b) a##b
#define NYBBLE_JOIN(a, b) NYBBLE_JOIN_(a, b)
#define NYBBLE_NUMBER_generic 0
#define NYBBLE_NUMBER_avx2 1
#define NYBBLE_NUMBER_avx512 2
#define NYBBLE_NUMBER_avx512_vnni 3
#define NYBBLE_NUMBER_neon 4
#define NYBBLE_ISA_NUMBER NYBBLE_JOIN(NYBBLE_NUMBER_, NYBBLE_ISA)

namespace nybble::cpu::NYBBLE_ISA {

// 16-bit floats as they lie in memory.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return float_of(uint32_t{x.bits} << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return float_of(sign | 0x70000000 | rest);  // inf, nan
  // Moves the exponent by a product, which is exact and serves subnormals too.
  return float_of(sign | bits_of(float_of(rest) * float_of(0x77800000)));
}

inline void from_float(float x, float* to) { *to = x; }
inline void from_float(float x, bf16* to) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffff) > 0x7f800000)
    to->bits = uint16_t((u >> 16) | 0x40);  // a nan stays a nan
  else
    to->bits = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void from_float(float x, f16* to) {
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  uint32_t h;
  if (a > 0x7f800000)
    h = 0x7e00 | ((a >> 13) & 0x3ff);
  else if (a >= 0x477ff000)
    h = 0x7c00;  // 65520 and above round to inf
  else if (a < 0x38800000)
    h = bits_of(float_of(a) + 0.5f) - 0x3f000000;  // the addition rounds at 2^-24
  else
    h = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
  to->bits = uint16_t(sign | h);
}

}  // namespace nybble::cpu::NYBBLE_ISA

#if NYBBLE_ISA_NUMBER == 0
#include "cpu/simd/generic.h"
#elif NYBBLE_ISA_NUMBER == 1
#include "cpu/simd/avx2.h"
#elif NYBBLE_ISA_NUMBER == 2 || NYBBLE_ISA_NUMBER == 3
#include "cpu/simd/avx512.h"
#elif NYBBLE_ISA_NUMBER == 4
#include "cpu/simd/neon.h"
#endif

namespace nybble::cpu::NYBBLE_ISA {

// e^x: relative error below 2e-7; 0 below -87.33, where the result would be subnormal and slow every sum that it
// enters; inf above 88.8, nan stays nan.
inline Vec exp(Vec x) {
  const Vec lowest = Vec::set(-87.33f), given = x;
  // The constant comes first: min and max return their second argument where either is nan.
  x = max(lowest, min(Vec::set(89.0f), x));
  const Vec n = round(x * Vec::set(1.44269504088896341f));
  Vec r = fma(n, Vec::set(-0.693359375f), x);
  r = fma(n, Vec::set(2.12194440e-4f), r);
  Vec p = fma(Vec::set(1.9875691500e-4f), r, Vec::set(1.3981999507e-3f));
  p = fma(p, r, Vec::set(8.3334519073e-3f));
  p = fma(p, r, Vec::set(4.1665795894e-2f));
  p = fma(p, r, Vec::set(1.6666665459e-1f));
  p = fma(p, r, Vec::set(5.0000001201e-1f));
  return select_lt(given, lowest, Vec::zero(), scale2(fma(p, r * r, r) + Vec::set(1.0f), n));
}

// x^y for x >= 0 and 0 < y <= 64: relative error below 3e-7 up to y = 4; subnormal x counts as 0; inf and nan stay.
// Both polynomials are of Moshier's Cephes library.
inline Vec pow(Vec x, float y) {
  static const float log_near_1[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                     -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                     2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  static const float exp2_near_0[] = {1.535336188319500e-4f, 1.339887440266574e-3f, 9.618437357674640e-3f,
                                      5.550332471162809e-2f, 2.402264791363012e-1f, 6.931472028550421e-1f};
  const Vec one = Vec::set(1.0f), root2 = Vec::set(1.41421356f), exponent = Vec::set(y);
  Vec n, m = split2(x, &n);
  n = select_lt(root2, m, n + one, n);
  m = select_lt(root2, m, m * Vec::set(0.5f), m) - one;
  const Vec square = m * m;
  Vec p = Vec::set(log_near_1[0]);
  for (int i = 1; i < 9; ++i) p = fma(p, m, Vec::set(log_near_1[i]));
  const Vec log = m + fma(p * m, square, Vec::set(-0.5f) * square);
  // y log2 x = whole + rest; y n may be large, and the digits it lost to rounding are in `lost` where fma is one step.
  const Vec large = exponent * n, lost = fma(exponent, n, Vec::zero() - large);
  const Vec part = (large - round(large)) + fma(Vec::set(1.44269504f * y), log, lost);
  const Vec whole = round(large) + round(part), rest = part - round(part);
  Vec q = Vec::set(exp2_near_0[0]);
  for (int i = 1; i < 6; ++i) q = fma(q, rest, Vec::set(exp2_near_0[i]));
  const Vec power = scale2(fma(q, rest, one), max(Vec::set(-252.0f), min(Vec::set(254.0f), whole)));
  const Vec finite = select_lt(x, Vec::set(float_of(0x7f800000)), power, x);
  return select_lt(x, Vec::set(float_of(0x00800000)), Vec::zero(), finite);
}

// Relative error below 3e-7: an odd polynomial near 0, where the other form would cancel (coefficients of Moshier's
// Cephes library), 1 - 2 / (e^2x + 1) beyond.
inline Vec tanh(Vec x) {
  const Vec one = Vec::set(1.0f), size = abs(x), square = x * x;
  Vec p = fma(Vec::set(-5.70498872745e-3f), square, Vec::set(2.06390887954e-2f));
  p = fma(p, square, Vec::set(-5.37397155531e-2f));
  p = fma(p, square, Vec::set(1.33314422036e-1f));
  p = fma(p, square, Vec::set(-3.33332819422e-1f));
  const Vec tail = one - Vec::set(2.0f) / (exp(size + size) + one);
  const Vec outer = select_lt(x, Vec::zero(), Vec::zero() - tail, tail);
  return select_lt(size, Vec::set(0.625f), fma(p * square, x, x), outer);
}

// Calls f with a value of the C++ type of `dtype`: with_type(dt, [&](auto t) { using T = decltype(t); ... }).
template <typename F>
inline void with_type(DType dtype, const F& f) {
  if (dtype == DType::f32)
    f(float{});
  else if (dtype == DType::f16)
    f(f16{});
  else
    f(bf16{});
}

}  // namespace nybble::cpu::NYBBLE_ISA
