// A row of floats to int8 codes with one scale.
#pragma once
#include <cmath>
#include <limits>

#include "cpu/simd/vec.h"

namespace nybble::cpu::NYBBLE_ISA {

// v rounded to T and back.
template <typename T>
inline Vec rounded_to(Vec v) {
  T lanes[Vec::width];
  v.store(lanes);
  return Vec::load(lanes);
}

// Largest |x_i| after rounding to `As`; NaN if one of them is not finite.
template <typename As, typename T>
inline float largest_of(const T* x, int64_t D) {
  constexpr int W = Vec::width;
  // max() drops a NaN, so what is not finite is caught by a product with 0.
  Vec top[2] = {Vec::zero(), Vec::zero()}, odd = Vec::zero();
  for (int64_t i = 0, j = 0; i < D; i += W, j ^= 1) {
    const Vec v = rounded_to<As>(i + W <= D ? Vec::load(x + i) : Vec::load_n(x + i, int(D - i)));
    top[j] = max(top[j], abs(v));
    odd = fma(v, Vec::zero(), odd);
  }
  return odd.hsum() == 0 ? max(top[0], top[1]).hmax() : std::numeric_limits<float>::quiet_NaN();
}

// Writes the codes of x and returns their scale; `largest` is what largest_of said.
template <typename T>
inline float write_codes(const T* x, int64_t D, float largest, int8_t* codes) {
  constexpr int W = Vec::width, kBlock = 64;
  if (!(largest >= 1e-30f)) {  // NaN, or so small that 127 / largest might be infinite
    if (D > 0) std::memset(codes, 0, size_t(D));
    return largest == largest ? 0.0f : largest;
  }
  const Vec inverse = Vec::set(127.0f / largest), low = Vec::set(-127.0f), high = Vec::set(127.0f);
  for (int64_t i = 0; i < D; i += kBlock) {
    const int n = int(smaller(kBlock, D - i));
    float steps[kBlock];
    for (int j = 0; j < n; j += W) {
      const Vec v = j + W <= n ? Vec::load(x + i + j) : Vec::load_n(x + i + j, n - j);
      max(low, min(high, round(v * inverse))).store(steps + j);
    }
    if (n == kBlock) {  // a constant count becomes vector code
      for (int j = 0; j < kBlock; ++j) codes[i + j] = int8_t(int32_t(steps[j]));
    } else {
      for (int j = 0; j < n; ++j) codes[i + j] = int8_t(int32_t(steps[j]));
    }
  }
  return largest / 127.0f;
}

}  // namespace nybble::cpu::NYBBLE_ISA
