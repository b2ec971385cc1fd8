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
struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

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
  if ((u & 0x7fffffff) > 0x7f800000) to->bits = uint16_t((u >> 16) | 0x40);  // a nan stays a nan
  else to->bits = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void from_float(float x, f16* to) {
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  uint32_t h;
  if (a > 0x7f800000) h = 0x7e00 | ((a >> 13) & 0x3ff);
  else if (a >= 0x477ff000) h = 0x7c00;  // 65520 and above round to inf
  else if (a < 0x38800000) h = bits_of(float_of(a) + 0.5f) - 0x3f000000;  // the addition rounds at 2^-24
  else h = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
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

// e^x: relative error below 2e-7; 0 below -104, inf above 88.8, nan stays nan.
inline Vec exp(Vec x) {
  // The constant comes first: min and max return their second argument where either is nan.
  x = max(Vec::set(-104.0f), min(Vec::set(89.0f), x));
  const Vec n = round(x * Vec::set(1.44269504088896341f));
  Vec r = fma(n, Vec::set(-0.693359375f), x);
  r = fma(n, Vec::set(2.12194440e-4f), r);
  Vec p = fma(Vec::set(1.9875691500e-4f), r, Vec::set(1.3981999507e-3f));
  p = fma(p, r, Vec::set(8.3334519073e-3f));
  p = fma(p, r, Vec::set(4.1665795894e-2f));
  p = fma(p, r, Vec::set(1.6666665459e-1f));
  p = fma(p, r, Vec::set(5.0000001201e-1f));
  return scale2(fma(p, r * r, r) + Vec::set(1.0f), n);
}

// Relative error below 3e-7: an odd polynomial near 0, where the other form would cancel (coefficients of Moshier's Cephes
// library), 1 - 2 / (e^2x + 1) beyond.
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
  if (dtype == DType::f32) f(float{});
  else if (dtype == DType::f16) f(f16{});
  else f(bf16{});
}

}  // namespace nybble::cpu::NYBBLE_ISA
