// Columns do not meet, so each thread takes a block of them through all rows. Within a block, kDepth rows at a time:
//
//        columns ->
//   rows [ quantized one after another; row r first gets the errors of the rows above it ]  kDepth rows
//        [ minus U^T times those errors, as a matrix product: nearly all of the work      ]  all rows below
#include "ops/gptq.h"

#include <atomic>

#include "cpu/codec/grid.h"
#include "cpu/scratch.h"
#include "cpu/simd/tile.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;
constexpr int64_t kDepth = 128;
constexpr int64_t kColumns = 256;                                 // of a block: its errors fit the second cache
constexpr int64_t kRows = 168 / Vec::tile_rows * Vec::tile_rows;  // that share one packing of U

// A thread's working memory.
struct Work {
  float error[kDepth * kColumns];             // columns of one tile lie together: [n / kTileColumns][k][kTileColumns]
  float u[kDepth * kRows];                    // -U[k, rows]
  float edge[Vec::tile_rows * kTileColumns];  // the last columns of a matrix that do not fill a tile
  float column[kDepth];                       // -U[rows above, r]
};

struct Block {
  const GptqGroupArgs& a;
  int64_t n0, columns;
  Work& work;

  // Rows from..from + depth: codes, errors, values.
  void quantize_rows(int64_t from, int64_t depth) const {
    const Grid grid(a.zero, a.last);
    for (int64_t k = 0; k < depth; ++k) {
      const float* u = a.cholesky + from * a.cholesky_stride + from + k;
      for (int64_t i = 0; i < k; ++i) work.column[i] = -u[i * a.cholesky_stride];
      const Vec diagonal = Vec::set(u[k * a.cholesky_stride]);
      for (int64_t n = 0; n < columns; n += kTileColumns) quantize_piece(grid, from + k, k, n, diagonal);
    }
  }

  // kTileColumns of row r, the k-th of these.
  void quantize_piece(const Grid& grid, int64_t r, int64_t k, int64_t n, Vec diagonal) const {
    float* weight = a.weight + r * a.weight_stride + n0;
    float* errors = work.error + n * kDepth;
    float row[kTileColumns];
    for (int j = 0; j < kTileColumns; j += W) Vec::load_n(weight + n + j, count(n + j)).store(row + j);
    tile<1, 0, 1>(work.column, errors, kTileColumns, row, kTileColumns, k, true);
    for (int j = 0; j < kTileColumns; j += W) {
      const int lanes = count(n + j);
      const Vec w = Vec::load(row + j), scale = Vec::load_n(a.scales + n0 + n + j, lanes);
      const Vec code = grid.code(w / scale), value = grid.value(code, scale);
      const Vec error = (w - value) / diagonal;
      error.store(errors + k * kTileColumns + j);
      error.store_n(a.error + r * a.error_stride + n0 + n + j, lanes);
      value.store_n(weight + n + j, lanes);
      store_codes(code, a.codes + r * a.codes_stride + n0 + n + j, lanes);
    }
  }

  // All rows below from + depth, minus U^T error.
  void spread(int64_t from, int64_t depth) const {
    for (int64_t r = from + depth; r < a.T; r += kRows) {
      const int64_t rows = smaller(kRows, a.T - r);
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t m = 0; m < rows; m += W) {
          const int lanes = int(smaller(W, rows - m));
          const float* u = a.cholesky + (from + k) * a.cholesky_stride + r + m;
          (Vec::zero() - Vec::load_n(u, lanes)).store_n(work.u + k * kRows + m, lanes);
        }
      // Strips of rows outside, columns inside: whole pieces of a row at a time, which the memory likes.
      for (int64_t m = 0; m < rows; m += Vec::tile_rows)
        for (int64_t n = 0; n < columns; n += kTileColumns) {
          const Strip strip{work.u + m, smaller(Vec::tile_rows, rows - m), depth};
          float* weight = a.weight + (r + m) * a.weight_stride + n0 + n;
          if (n + kTileColumns <= columns)
            subtract(strip, n, weight, a.weight_stride);
          else
            subtract_edge(strip, n, weight);
        }
    }
  }

  struct Strip {
    const float* u;
    int64_t rows, depth;
  };

  void subtract(const Strip& strip, int64_t n, float* to, int64_t stride) const {
    tile_rows<Vec::tile_rows, 1, kRows>(strip.rows, strip.u, work.error + n * kDepth, kTileColumns, to, stride,
                                        strip.depth, true);
  }

  void subtract_edge(const Strip& strip, int64_t n, float* weight) const {
    const auto each = [&](const auto& move) {
      for (int64_t m = 0; m < strip.rows; ++m)
        for (int j = 0; j < kTileColumns; j += W)
          move(weight + m * a.weight_stride + j, work.edge + m * kTileColumns + j, count(n + j));
    };
    each([](const float* w, float* edge, int lanes) { Vec::load_n(w, lanes).store(edge); });
    subtract(strip, n, work.edge, kTileColumns);
    each([](float* w, const float* edge, int lanes) { Vec::load(edge).store_n(w, lanes); });
  }

  // Lanes of this block's columns in the vector at n.
  int count(int64_t n) const { return int(smaller(W, larger(0, columns - n))); }
};

}  // namespace

Status gptq_group(const GptqGroupArgs& a) {
  // Narrower blocks where there would be fewer than threads; each column is the same in any split.
  const int64_t width = smaller(kColumns, ceil_div(ceil_div(a.N, threads()), kTileColumns) * kTileColumns);
  std::atomic<bool> failed{false};
  parallel_for(ceil_div(a.N, width), 1, [&](int64_t begin, int64_t end) {
    Work* work = static_cast<Work*>(thread_scratch(Slot::gptq, sizeof(Work)));
    if (!work) {
      failed = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const Block block{a, i * width, smaller(width, a.N - i * width), *work};
      for (int64_t from = 0; from < a.R; from += kDepth) {
        const int64_t depth = smaller(kDepth, a.R - from);
        block.quantize_rows(from, depth);
        block.spread(from, depth);
      }
    }
  });
  if (failed) return {"gptq_group_: out of memory"};
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
