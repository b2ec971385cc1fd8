// Vec in plain C++: four lanes that a compiler can keep in one register of whatever the base instruction set has.
#pragma once
#include <cmath>

namespace nybble::cpu::NYBBLE_ISA {

struct Vec {
  static constexpr int width = 4;
  static constexpr int tile_rows = 4, tile_vecs = 2;  // the matrix tile that fits the registers
  float v[4];

  static Vec set(float x) { return {{x, x, x, x}}; }
  static Vec zero() { return set(0.0f); }
  template <typename T>
  static Vec load(const T* p) {
    return {{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
  }
  // The first n lanes (0 <= n <= width); the others are 0.
  template <typename T>
  static Vec load_n(const T* p, int n) {
    Vec r = zero();
    for (int i = 0; i < n; ++i) r.v[i] = to_float(p[i]);
    return r;
  }
  template <typename T>
  void store(T* p) const {
    for (int i = 0; i < 4; ++i) from_float(v[i], p + i);
  }
  template <typename T>
  void store_n(T* p, int n) const {
    for (int i = 0; i < n; ++i) from_float(v[i], p + i);
  }
  float hsum() const { return (v[0] + v[1]) + (v[2] + v[3]); }
  float hmax() const {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
};

template <typename F>
inline Vec each(Vec a, Vec b, const F& f) {
  return {{f(a.v[0], b.v[0]), f(a.v[1], b.v[1]), f(a.v[2], b.v[2]), f(a.v[3], b.v[3])}};
}
inline Vec operator+(Vec a, Vec b) {
  return each(a, b, [](float x, float y) { return x + y; });
}
inline Vec operator-(Vec a, Vec b) {
  return each(a, b, [](float x, float y) { return x - y; });
}
inline Vec operator*(Vec a, Vec b) {
  return each(a, b, [](float x, float y) { return x * y; });
}
inline Vec operator/(Vec a, Vec b) {
  return each(a, b, [](float x, float y) { return x / y; });
}
inline Vec max(Vec a, Vec b) {
  return each(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline Vec min(Vec a, Vec b) {
  return each(a, b, [](float x, float y) { return x < y ? x : y; });
}
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // std::fma without the instruction is a slow call
inline Vec abs(Vec a) {
  return each(a, a, [](float x, float) { return std::fabs(x); });
}
// a < b ? x : y
inline Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
  Vec r;
  for (int i = 0; i < 4; ++i) r.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i];
  return r;
}
inline Vec round(Vec a) {  // |a| < 2^22, ties to even
  const Vec magic = Vec::set(12582912.0f);
  return (a + magic) - magic;
}
// x * 2^n for whole n in [-252, 254], in two steps so that a subnormal or infinite result is right.
inline Vec scale2(Vec x, Vec n) {
  return each(x, n, [](float a, float b) {
    if (!(b == b)) return b;
    const int k = int(b), h = k >> 1;
    return a * float_of(uint32_t(h + 127) << 23) * float_of(uint32_t(k - h + 127) << 23);
  });
}
// x = m * 2^n, 1 <= m < 2, for positive normal x; of anything else some finite m and n.
inline Vec split2(Vec x, Vec* n) {
  Vec m;
  for (int i = 0; i < 4; ++i) {
    const uint32_t u = bits_of(x.v[i]);
    n->v[i] = float(int(u >> 23 & 0xff) - 127);
    m.v[i] = float_of((u & 0x7fffff) | 0x3f800000);
  }
  return m;
}
// Rows become columns of a width x width square.
inline void transpose(Vec* v) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < i; ++j) {
      const float x = v[i].v[j];
      v[i].v[j] = v[j].v[i];
      v[j].v[i] = x;
    }
}

}  // namespace nybble::cpu::NYBBLE_ISA
