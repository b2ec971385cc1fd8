// Floats to codes on a uniform grid and back, a vector at a time (ops/quantize.h has the formula).
#pragma once
#include "cpu/simd/vec.h"

namespace nybble::cpu::NYBBLE_ISA {

// Rounded to float16 and widened again.
inline Vec through_half(Vec v) {
  f16 half[Vec::width];
  v.store(half);
  return Vec::load(half);
}

struct Grid {
  Vec zero, last;

  Grid(float zero_point, float last_code) : zero(Vec::set(zero_point)), last(Vec::set(last_code)) {}

  Vec code(Vec ratio) const {
    const Vec c = round(ratio) + zero;
    return max(select_lt(c, last, c, last), Vec::zero());  // nan is not below last
  }
  Vec value(Vec code, Vec scale) const { return through_half((code - zero) * through_half(scale)); }
};

inline void store_codes(Vec code, uint8_t* to, int n) {
  float lane[Vec::width];
  code.store(lane);
  for (int i = 0; i < n; ++i) to[i] = uint8_t(lane[i]);
}

}  // namespace nybble::cpu::NYBBLE_ISA
