// Integer matrix product of rows with rows: both operands run along K, so neither is packed.
//
//       K ->
//   x   =======  m..   a tile: kRows rows of x with kColumns rows of weight, one vector of sums each
//   w   =======  n..   a step: kStep bytes along K. Load kColumns pieces of weight; then, for each row of x,
//                      load one piece and add kColumns integer dot products
//
// A row block of x stays in the second cache while the columns pass, the weight rows of a tile in the first.
#include "ops/int8_matmul.h"

#include "cpu/simd/vec.h"
#include "cpu/threads.h"
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__) && NYBBLE_ISA_NUMBER == 4
#include <arm_neon.h>
#endif

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int64_t kPanelBytes = 512 << 10;  // of x in one row block

#if defined(__AVX2__)
// Modulo 2^32; the intrinsic that adds all of a vector is signed.
inline uint32_t total_of(__m256i s) {
  const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return uint32_t(_mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1))));
}
#endif
#if defined(__AVX512F__)
inline uint32_t total_of(__m512i s) {
  return total_of(_mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1)));
}
#endif

// One piece of kStep bytes: weight() and x() load it, dot() adds its products to the lanes of a sum.
// kBias: weight() gives w + kBias, so that each sum holds kBias times the row's sum too much.
#if defined(__AVX512VNNI__)
struct Piece {
  static constexpr int kStep = 64, kRows = 4, kColumns = 4, kBias = 128;
  using Sum = __m512i;
  using Codes = __m512i;
  static Sum zero() { return _mm512_setzero_si512(); }
  static Codes x(const int8_t* p) { return _mm512_loadu_si512(p); }
  // The instruction wants one side unsigned.
  static Codes weight(const int8_t* p) { return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(char(0x80))); }
  static Sum dot(Sum s, Codes w, Codes x) { return _mm512_dpbusd_epi32(s, w, x); }
  static uint32_t total(Sum s) { return total_of(s); }
};
#elif defined(__AVX512BW__)
struct Piece {
  static constexpr int kStep = 32, kRows = 4, kColumns = 4, kBias = 0;
  using Sum = __m512i;
  using Codes = __m512i;
  static Sum zero() { return _mm512_setzero_si512(); }
  static Codes x(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Codes weight(const int8_t* p) { return x(p); }
  static Sum dot(Sum s, Codes w, Codes x) { return _mm512_add_epi32(s, _mm512_madd_epi16(w, x)); }
  static uint32_t total(Sum s) { return total_of(s); }
};
#elif defined(__AVX2__)
struct Piece {
  static constexpr int kStep = 16, kRows = 2, kColumns = 4, kBias = 0;
  using Sum = __m256i;
  using Codes = __m256i;
  static Sum zero() { return _mm256_setzero_si256(); }
  static Codes x(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Codes weight(const int8_t* p) { return x(p); }
  static Sum dot(Sum s, Codes w, Codes x) { return _mm256_add_epi32(s, _mm256_madd_epi16(w, x)); }
  static uint32_t total(Sum s) { return total_of(s); }
};
#elif defined(__aarch64__) && NYBBLE_ISA_NUMBER == 4
struct Piece {
  static constexpr int kStep = 16, kRows = 2, kColumns = 4, kBias = 0;
  using Sum = int32x4_t;
  using Codes = int8x16_t;
  static Sum zero() { return vdupq_n_s32(0); }
  static Codes x(const int8_t* p) { return vld1q_s8(p); }
  static Codes weight(const int8_t* p) { return vld1q_s8(p); }
  static Sum dot(Sum s, Codes w, Codes x) {
    s = vpadalq_s16(s, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    return vpadalq_s16(s, vmull_high_s8(w, x));
  }
  static uint32_t total(Sum s) { return uint32_t(vaddvq_s32(s)); }
};
#else
struct Piece {
  static constexpr int kStep = 16, kRows = 1, kColumns = 1, kBias = 0;
  using Sum = int32_t;
  using Codes = const int8_t*;
  static Sum zero() { return 0; }
  static Codes x(const int8_t* p) { return p; }
  static Codes weight(const int8_t* p) { return p; }
  static Sum dot(Sum s, Codes w, Codes x) {
    for (int i = 0; i < kStep; ++i) s += int32_t(w[i]) * int32_t(x[i]);
    return s;
  }
  static uint32_t total(Sum s) { return uint32_t(s); }
};
#endif

// Sums of R rows of x with C rows of weight, modulo 2^32: with the bias a sum may pass 2^31 and come back. Every loop
// over `sum` is unrolled, or the compiler would keep it in memory.
template <int R, int C>
void dots(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t K, uint32_t (*out)[Piece::kColumns]) {
  typename Piece::Sum sum[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[r][c] = Piece::zero();
  int64_t k = 0;
  for (; k + Piece::kStep <= K; k += Piece::kStep) {
    typename Piece::Codes codes[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) codes[c] = Piece::weight(w + c * K + k);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const typename Piece::Codes row = Piece::x(x + r * x_stride + k);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] = Piece::dot(sum[r][c], codes[c], row);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) out[r][c] = Piece::total(sum[r][c]);
  for (; k < K; ++k)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) out[r][c] += uint32_t((w[c * K + k] + Piece::kBias) * x[r * x_stride + k]);
}

// dots() for rows <= R.
template <int R, int C>
void dots_of(int rows, const int8_t* x, int64_t x_stride, const int8_t* w, int64_t K,
             uint32_t (*out)[Piece::kColumns]) {
  if (rows == R)
    dots<R, C>(x, x_stride, w, K, out);
  else if constexpr (R > 1)
    dots_of<R - 1, C>(rows, x, x_stride, w, K, out);
}

// Rows [m0, m1) with C weight rows from n.
template <int C, typename T>
void columns(const Int8MatmulArgs& a, int64_t m0, int64_t m1, int64_t n) {
  const int8_t* w = a.weight + n * a.K;
  T* y = static_cast<T*>(a.y);
  for (int64_t m = m0; m < m1; m += Piece::kRows) {
    const int rows = int(smaller(Piece::kRows, m1 - m));
    uint32_t sums[Piece::kRows][Piece::kColumns];
    dots_of<Piece::kRows, C>(rows, a.x + m * a.x_stride, a.x_stride, w, a.K, sums);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < C; ++c) {
        const uint32_t extra = Piece::kBias ? uint32_t(Piece::kBias) * uint32_t(a.scratch[m + r]) : 0;
        const float sum = float(int32_t(sums[r][c] - extra)) * (a.x_scale[m + r] * a.w_scale[n + c]);
        from_float(a.bias ? sum + a.bias[n + c] : sum, y + (m + r) * a.N + n + c);
      }
  }
}

void sum_rows(const Int8MatmulArgs& a) {
  parallel_for(a.M, larger(1, 65536 / larger(1, a.K)), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      int32_t sum = 0;
      for (int64_t k = 0; k < a.K; ++k) sum += a.x[m * a.x_stride + k];
      a.scratch[m] = sum;
    }
  });
}

}  // namespace

Status int8_matmul(const Int8MatmulArgs& a) {
  if (Piece::kBias) sum_rows(a);
  const int64_t panel = larger(1, kPanelBytes / larger(1, a.K) / Piece::kRows) * Piece::kRows;
  const int64_t row_blocks = ceil_div(a.M, panel), groups = ceil_div(a.N, Piece::kColumns);
  const int64_t work = larger(1, smaller(panel, a.M) * a.K * Piece::kColumns);
  with_type(a.y_dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(row_blocks * groups, larger(1, 262144 / work), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t m0 = i / groups * panel, m1 = smaller(a.M, m0 + panel), n = i % groups * Piece::kColumns;
        if (n + Piece::kColumns <= a.N)
          columns<Piece::kColumns, T>(a, m0, m1, n);
        else
          for (int64_t c = n; c < a.N; ++c) columns<1, T>(a, m0, m1, c);
      }
    });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
