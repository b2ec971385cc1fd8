// Vec for 64-bit ARM: four lanes.
#pragma once
#include <arm_neon.h>

namespace nybble::cpu::NYBBLE_ISA {

struct Vec {
  static constexpr int width = 4;
  static constexpr int tile_rows = 8, tile_vecs = 2;  // 16 sums, 2 columns; a broadcast is an operand of the product
  float32x4_t v;

  static Vec set(float x) { return {vdupq_n_f32(x)}; }
  static Vec zero() { return {vdupq_n_f32(0.0f)}; }
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec load(const f16* p) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
  }
  static Vec load(const bf16* p) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))};
  }
  // The first n lanes (0 <= n <= width); the others are 0.
  template <typename T>
  static Vec load_n(const T* p, int n) {
    T t[4] = {};
    for (int i = 0; i < n; ++i) t[i] = p[i];
    return load(t);
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void store(f16* p) const { vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  void store(bf16* p) const {
    const uint32x4_t u = vreinterpretq_u32_f32(v), high = vshrq_n_u32(u, 16);
    const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    const uint32x4_t even = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    const uint32x4_t nan = vorrq_u32(high, vdupq_n_u32(0x40));
    vst1_u16(reinterpret_cast<uint16_t*>(p), vmovn_u32(vbslq_u32(vceqq_f32(v, v), even, nan)));
  }
  template <typename T>
  void store_n(T* p, int n) const {
    T t[4];
    store(t);
    for (int i = 0; i < n; ++i) p[i] = t[i];
  }
  float hsum() const { return vaddvq_f32(v); }
  float hmax() const { return vmaxvq_f32(v); }
};

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }  // nan if either is, which serves every caller
inline Vec min(Vec a, Vec b) { return {vminq_f32(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vec abs(Vec a) { return {vabsq_f32(a.v)}; }
// a < b ? x : y
inline Vec select_lt(Vec a, Vec b, Vec x, Vec y) { return {vbslq_f32(vcltq_f32(a.v, b.v), x.v, y.v)}; }
inline Vec round(Vec a) { return {vrndnq_f32(a.v)}; }
// x * 2^n for whole n in [-252, 254], in two steps so that a subnormal or infinite result is right.
inline Vec scale2(Vec x, Vec n) {
  const int32x4_t k = vcvtq_s32_f32(n.v), h = vshrq_n_s32(k, 1), one = vdupq_n_s32(127);
  const float32x4_t a = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(h, one), 23));
  const float32x4_t b = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(k, h), one), 23));
  return {vmulq_f32(vmulq_f32(x.v, a), b)};
}
// x = m * 2^n, 1 <= m < 2, for positive normal x; of anything else some finite m and n.
inline Vec split2(Vec x, Vec* n) {
  const uint32x4_t u = vreinterpretq_u32_f32(x.v);
  const int32x4_t power = vreinterpretq_s32_u32(vandq_u32(vshrq_n_u32(u, 23), vdupq_n_u32(0xff)));
  n->v = vcvtq_f32_s32(vsubq_s32(power, vdupq_n_s32(127)));
  return {vreinterpretq_f32_u32(vorrq_u32(vandq_u32(u, vdupq_n_u32(0x7fffff)), vdupq_n_u32(0x3f800000)))};
}
// Rows become columns of a width x width square.
inline void transpose(Vec* v) {
  const float32x4x2_t a = vtrnq_f32(v[0].v, v[1].v), b = vtrnq_f32(v[2].v, v[3].v);
  v[0].v = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  v[1].v = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  v[2].v = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  v[3].v = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

}  // namespace nybble::cpu::NYBBLE_ISA
