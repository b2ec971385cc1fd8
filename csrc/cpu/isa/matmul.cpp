#include "ops/matmul.h"

#include <atomic>

#include "cpu/scratch.h"
#include "cpu/simd/tile.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;
constexpr int kMaxColumns =
    Vec::tile_rows >= 8 ? 4 : 2;  // weight rows that four rows of x share, as the registers allow
constexpr int kFewRows = 32;

// ---- few rows: read the weight once, at the speed of memory ----

// Dot products of C weight rows with R rows of x; each vector loaded serves several of them.
template <int R, int C, typename WT>
void dots(const float* x, int64_t x_stride, const WT* w, int64_t K, float (*out)[kMaxColumns]) {
  constexpr int U = R * C >= 8   ? 1
                    : R * C >= 4 ? 2
                                 : 4;  // independent sums of each, to hide the latency of the product
  Vec sum[R][C][U];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      for (int u = 0; u < U; ++u) sum[r][c][u] = Vec::zero();
  int64_t k = 0;
  for (; k + U * W <= K; k += U * W)
    for (int u = 0; u < U; ++u) {
      Vec v[C];
      for (int c = 0; c < C; ++c) v[c] = Vec::load(w + c * K + k + u * W);
      for (int r = 0; r < R; ++r) {
        const Vec xv = Vec::load(x + r * x_stride + k + u * W);
        for (int c = 0; c < C; ++c) sum[r][c][u] = fma(v[c], xv, sum[r][c][u]);
      }
    }
  for (; k < K; k += W) {
    const int n = int(smaller(W, K - k));
    for (int c = 0; c < C; ++c) {
      const Vec v = Vec::load_n(w + c * K + k, n);
      for (int r = 0; r < R; ++r) sum[r][c][0] = fma(v, Vec::load_n(x + r * x_stride + k, n), sum[r][c][0]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      for (int u = 1; u < U; ++u) sum[r][c][0] = sum[r][c][0] + sum[r][c][u];
      out[r][c] = sum[r][c][0].hsum();
    }
}

// All rows of x with C weight rows from n.
template <int C, typename WT>
void few_columns(const MatmulArgs& a, const float* x, int64_t x_stride, int64_t n) {
  const WT *w = static_cast<const WT*>(a.weight) + n * a.K, *bias = static_cast<const WT*>(a.bias);
  for (int64_t m = 0; m < a.M; m += 4) {
    const int rows = int(smaller(4, a.M - m));
    const float* xm = x + m * x_stride;
    float out[4][kMaxColumns];
    if (rows == 4)
      dots<4, C>(xm, x_stride, w, a.K, out);
    else if (rows == 3)
      dots<3, C>(xm, x_stride, w, a.K, out);
    else if (rows == 2)
      dots<2, C>(xm, x_stride, w, a.K, out);
    else
      dots<1, C>(xm, x_stride, w, a.K, out);
    with_type(a.x_dtype, [&](auto t) {
      auto* y = static_cast<decltype(t)*>(a.y) + m * a.N + n;
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < C; ++c) from_float(out[r][c] + (bias ? to_float(bias[n + c]) : 0.0f), y + r * a.N + c);
    });
  }
}

struct Floats {
  const float* x;
  int64_t stride;
};

// x as float32: converted once, not anew for each weight row, and one loop serves every type of x. False: no memory.
bool as_floats(const MatmulArgs& a, Floats* out) {
  *out = {static_cast<const float*>(a.x), a.x_stride};
  if (a.x_dtype == DType::f32 || a.K == 0) return true;
  const int64_t stride = ceil_div(a.K, 16) * 16;
  auto* floats = static_cast<float*>(thread_scratch(Slot::matmul, a.M * stride * 4));
  if (floats == nullptr) return false;
  with_type(a.x_dtype, [&](auto t) {
    const auto* x = static_cast<const decltype(t)*>(a.x);
    for (int64_t m = 0; m < a.M; ++m)
      for (int64_t k = 0; k < a.K; k += W) {
        const int n = int(smaller(W, a.K - k));
        Vec::load_n(x + m * a.x_stride + k, n).store_n(floats + m * stride + k, n);
      }
  });
  *out = {floats, stride};
  return true;
}

template <typename WT>
Status few_rows(const MatmulArgs& a) {
  Floats x;
  if (!as_floats(a, &x)) return {"matmul: out of memory"};
  // One row streams one weight row at a time; more rows share the loads of x between weight rows.
  const int step = a.M == 1 ? 1 : kMaxColumns;
  const int64_t groups = ceil_div(a.N, step);
  parallel_for(groups, larger(1, 65536 / larger(1, a.K * step * a.M)), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t n = g * step, count = smaller(step, a.N - n);
      if (count == kMaxColumns)
        few_columns<kMaxColumns, WT>(a, x.x, x.stride, n);
      else
        for (int64_t c = 0; c < count; ++c) few_columns<1, WT>(a, x.x, x.stride, n + c);
    }
  });
  return {};
}

// ---- many rows: blocks of x and weight, packed as f32, in the second cache ----

constexpr int kDepth = 256;           // of one block, along K
constexpr int kStride = kDepth + 16;  // of a packed row of x: not a power of two, for the cache's sets
constexpr int kRows = 168 / Vec::tile_rows * Vec::tile_rows;
constexpr int kManyRows = 4 * kRows;  // that share one packing of the weight
constexpr int kColumns = 256;

// to[k, n] = w[n, k], zero for n in [columns, padded).
template <typename WT>
void pack_columns(const WT* w, int64_t stride, int64_t columns, int64_t padded, int64_t depth, float* to) {
  for (int64_t n = 0; n < padded; n += W)
    for (int64_t k = 0; k < depth; k += W) {
      const int nk = int(smaller(W, depth - k));
      Vec square[W];
      for (int i = 0; i < W; ++i) square[i] = n + i < columns ? Vec::load_n(w + (n + i) * stride + k, nk) : Vec::zero();
      transpose(square);
      // Columns of one tile lie together: [n / kTileColumns][k][kTileColumns].
      float* out = to + n / kTileColumns * kTileColumns * kDepth + n % kTileColumns + k * kTileColumns;
      for (int j = 0; j < nk; ++j) square[j].store(out + j * kTileColumns);
    }
}

template <typename T>
void pack_rows(const T* x, int64_t stride, int64_t rows, int64_t depth, float* to) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t k = 0; k < depth; k += W) {
      const int n = int(smaller(W, depth - k));
      Vec::load_n(x + m * stride + k, n).store_n(to + m * kStride + k, n);
    }
}

// y[m0 .. m0 + rows, n0 .. n0 + columns]; c, pw and px are this thread's.
void block(const MatmulArgs& a, int64_t m0, int64_t rows, int64_t n0, int64_t columns, float* c, float* pw, float* px) {
  const int64_t padded = ceil_div(columns, kTileColumns) * kTileColumns;
  for (int64_t k = 0; k < a.K; k += kDepth) {
    const int64_t depth = smaller(kDepth, a.K - k);
    with_type(a.w_dtype, [&](auto t) {
      pack_columns(static_cast<const decltype(t)*>(a.weight) + n0 * a.K + k, a.K, columns, padded, depth, pw);
    });
    for (int64_t m = 0; m < rows; m += kRows) {
      const int64_t count = smaller(kRows, rows - m);
      with_type(a.x_dtype, [&](auto t) {
        pack_rows(static_cast<const decltype(t)*>(a.x) + (m0 + m) * a.x_stride + k, a.x_stride, count, depth, px);
      });
      for (int64_t n = 0; n < padded; n += kTileColumns)
        multiply<kStride, 1>(count, kTileColumns, px, pw + n * kDepth, kTileColumns, c + m * kColumns + n, kColumns,
                             depth, k > 0);
    }
  }
  if (a.bias)
    with_type(a.w_dtype, [&](auto t) {
      const auto* bias = static_cast<const decltype(t)*>(a.bias) + n0;
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t n = 0; n < columns; n += W) {
          float* sum = c + m * kColumns + n;
          (Vec::load(sum) + Vec::load_n(bias + n, int(smaller(W, columns - n)))).store(sum);
        }
    });
  with_type(a.x_dtype, [&](auto t) {
    auto* y = static_cast<decltype(t)*>(a.y) + m0 * a.N + n0;
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t n = 0; n < columns; n += W)
        Vec::load(c + m * kColumns + n).store_n(y + m * a.N + n, int(smaller(W, columns - n)));
  });
}

Status many_rows(const MatmulArgs& a) {
  // Narrower blocks where there would be fewer than threads; each sum is the same in any split.
  const int64_t width = smaller(kColumns, ceil_div(ceil_div(a.N, threads()), kTileColumns) * kTileColumns);
  const int64_t column_blocks = ceil_div(a.N, width), row_blocks = ceil_div(a.M, kManyRows);
  std::atomic<bool> failed{false};
  parallel_for(column_blocks * row_blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t c_size = smaller(a.M, kManyRows) * kColumns, w_size = int64_t{kDepth} * kColumns;
    float* c = static_cast<float*>(thread_scratch(Slot::matmul, (c_size + w_size + int64_t{kRows} * kStride) * 4));
    if (!c) {
      failed = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / row_blocks * width, m = i % row_blocks * kManyRows;
      block(a, m, smaller(kManyRows, a.M - m), n, smaller(width, a.N - n), c, c + c_size, c + c_size + w_size);
    }
  });
  if (failed) return {"matmul: out of memory"};
  return {};
}

}  // namespace

Status matmul(const MatmulArgs& a) {
  if (a.M > kFewRows && a.K > 0) return many_rows(a);
  Status status;
  with_type(a.w_dtype, [&](auto t) { status = few_rows<decltype(t)>(a); });
  return status;
}

}  // namespace nybble::cpu::NYBBLE_ISA
