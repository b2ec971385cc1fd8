// C = (or +=) A B on one register tile: the inner loop of matmul and attention. All f32, B and C padded to whole tiles.
#pragma once
#include "cpu/simd/vec.h"

namespace nybble::cpu::NYBBLE_ISA {

constexpr int kTileColumns = Vec::tile_vecs * Vec::width;

// A[r, k] = a[r * RowStride + k * KStride]; the strides are constants so that each row is an address, not a register.
template <int R, int RowStride, int KStride>
inline void tile(const float* a, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t K, bool add) {
  constexpr int NV = Vec::tile_vecs, W = Vec::width;
  Vec sum[R][NV];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < NV; ++j) sum[r][j] = add ? Vec::load(c + r * c_stride + j * W) : Vec::zero();
  for (int64_t k = 0; k < K; ++k) {
    Vec column[NV];
    for (int j = 0; j < NV; ++j) column[j] = Vec::load(b + k * b_stride + j * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = Vec::set(a[r * RowStride + k * KStride]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sum[r][j] = fma(x, column[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < NV; ++j) sum[r][j].store(c + r * c_stride + j * W);
}

// The same for rows <= R.
template <int R, int RowStride, int KStride>
inline void tile_rows(int64_t rows, const float* a, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                      int64_t K, bool add) {
  if (rows == R)
    tile<R, RowStride, KStride>(a, b, b_stride, c, c_stride, K, add);
  else if constexpr (R > 1)
    tile_rows<R - 1, RowStride, KStride>(rows, a, b, b_stride, c, c_stride, K, add);
}

// Any number of rows; `columns` of C, rounded up to whole tiles. Compiled once, not into each caller: it is long.
template <int RowStride, int KStride>
[[gnu::noinline]] void multiply(int64_t rows, int64_t columns, const float* a, const float* b, int64_t b_stride,
                                float* c, int64_t c_stride, int64_t K, bool add) {
  constexpr int R = Vec::tile_rows;
  // Columns outside: their part of B stays in the first cache while the rows pass by.
  for (int64_t n = 0; n < columns; n += kTileColumns)
    for (int64_t m = 0; m < rows; m += R)
      tile_rows<R, RowStride, KStride>(smaller(R, rows - m), a + m * RowStride, b + n, b_stride, c + m * c_stride + n,
                                       c_stride, K, add);
}

}  // namespace nybble::cpu::NYBBLE_ISA
