// Vec for AVX-512 (F, BW, VL, DQ): sixteen lanes, masks for the partial ones.
#pragma once
// GCC 12 takes the deliberately undefined operands inside its own header for uses of an uninitialised variable.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace nybble::cpu::NYBBLE_ISA {

struct Vec {
  static constexpr int width = 16;
  static constexpr int tile_rows = 14, tile_vecs = 2;  // 28 sums, 2 columns, 1 broadcast of 32 registers
  __m512 v;

  static Vec set(float x) { return {_mm512_set1_ps(x)}; }
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const f16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static Vec load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  // The first n lanes (0 <= n <= width); the others are 0.
  static Vec load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static Vec load_n(const f16* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
  static Vec load_n(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(f16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half()); }
  void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), brain()); }
  void store_n(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  void store_n(f16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), half()); }
  void store_n(bf16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), brain()); }
  float hsum() const { return _mm512_reduce_add_ps(v); }
  float hmax() const { return _mm512_reduce_max_ps(v); }

  static __mmask16 first(int n) { return __mmask16((1u << n) - 1); }
  static Vec widen(__m256i u) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(u), 16))}; }
  __m256i half() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  __m256i brain() const {
    const __m512i u = _mm512_castps_si512(v), high = _mm512_srli_epi32(u, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(r);
  }
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec abs(Vec a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
// a < b ? x : y
inline Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec scale2(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }  // x * 2^n
// x = m * 2^n, 1 <= m < 2, for positive normal x; of anything else some finite m and n.
inline Vec split2(Vec x, Vec* n) {
  const __m512i u = _mm512_castps_si512(x.v);
  const __m512i power = _mm512_and_si512(_mm512_srli_epi32(u, 23), _mm512_set1_epi32(0xff));
  n->v = _mm512_cvtepi32_ps(_mm512_sub_epi32(power, _mm512_set1_epi32(127)));
  return {_mm512_castsi512_ps(
      _mm512_or_si512(_mm512_and_si512(u, _mm512_set1_epi32(0x7fffff)), _mm512_set1_epi32(0x3f800000)))};
}
// Rows become columns of a width x width square.
inline void transpose(Vec* v) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {  // columns 2j and 2j + 1 of four rows, in every quarter
      b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
  for (int j = 0; j < 4; ++j) {  // quarters q of rows 4p.. become quarters p of columns 4q..
    const __m512 even01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88),
                 odd01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88),
                 odd23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    v[j].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
    v[j + 8].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    v[j + 4].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    v[j + 12].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

}  // namespace nybble::cpu::NYBBLE_ISA
