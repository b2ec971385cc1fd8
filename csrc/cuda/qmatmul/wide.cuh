// What the kernels for many rows share: how tiles are shared out and cut, and the way of their sums to y.
#pragma once
#include <algorithm>

#include "cuda/codec/tile.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/number.cuh"
#include "cuda/qmatmul/matrix.h"

namespace nybble::cuda::wide {

template <typename T>
struct Output {
  const T* bias;       // [N] or nullptr
  const T* add;        // [M, N], rows add_stride elements apart, or nullptr
  int64_t add_stride;  //
  T* y;                // [M, N]
  int64_t M;
  int32_t N;
};

// Tiles next to each other share columns, eight row tiles at a time: their rows of x and their weights stay in L2.
struct Place {
  int row_tile, column_tile;
};
__device__ inline Place place_of(int tile, int row_tiles, int column_tiles) {
  constexpr int kBand = 8;
  const int band = tile / (kBand * column_tiles);
  const int height = min(kBand, row_tiles - band * kBand), at = tile - band * kBand * column_tiles;
  return {band * kBand + at % height, at / height};
}

// y = v + bias + add, rounded once, of 8 rows from `row` on and 16 columns from n on. Lane 4 g + t brings
// v[2 h + e] = sum of row + 2 t + e, n + 8 h + g, and writes four neighbours of one row. What lies beyond y is left
// out.
template <typename T>
__device__ void finish_block(const Output<T>& o, int64_t row, int64_t n, float (&v)[4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  uint32_t pair[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t column = n + 8 * h + g;
    if (column < o.N) {
      const float bias = o.bias == nullptr ? 0.0f : to_float(o.bias[column]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int64_t r = row + 2 * t + e;
        v[2 * h + e] += bias;
        if (o.add != nullptr && r < o.M) v[2 * h + e] += to_float(o.add[r * o.add_stride + column]);
      }
    }
    pair[h] = transposed(pack<T>(v[2 * h], v[2 * h + 1]));  // now row + g, columns n + 8 h + 2 t, 2 t + 1
  }
  const bool odd = t % 2 != 0;
  const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? pair[0] : pair[1], 1);
  const uint2 four = odd ? make_uint2(other, pair[1]) : make_uint2(pair[0], other);
  const int64_t column = n + (odd ? 8 + 2 * (t - 1) : 2 * t);
  if (row + g >= o.M || column >= o.N) return;
  T* to = o.y + (row + g) * o.N + column;
  if (o.N % 4 == 0) {
    *reinterpret_cast<uint2*>(to) = four;
  } else {
    const T* from = reinterpret_cast<const T*>(&four);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (column + e < o.N) to[e] = from[e];
  }
}

// Who does what. Tiles are numbered as place_of() says. The first `ctas * whole` of them are taken whole, in turn; the
// `rest` are cut in stages, and the row of all their stages is shared evenly.
struct Plan {
  int ctas, whole, rest;
  int stages;  // of a tile
  int tiles;
  int row_tiles, column_tiles;
  int split;  // not 1: each tile is the work of a cluster of so many blocks, each of which has a stretch of its stages

  __host__ __device__ int share(int cta) const {  // the first of its stages of the rest
    return static_cast<int>(static_cast<int64_t>(cta) * rest * stages / ctas);
  }
};

// What it takes to add up the pieces of tiles by a second kernel, or the sums of a cluster, as k that take as long.
struct Extra {
  int pieces, exchange;
};

// The k that a block goes through one after the other.
inline int64_t cost_of(const Plan& p, int stage_k, const Extra& extra) {
  if (p.split > 1) return static_cast<int64_t>((p.stages + p.split - 1) / p.split) * stage_k + extra.exchange;
  if (p.rest == 0) return static_cast<int64_t>(p.whole) * p.stages * stage_k;
  return static_cast<int64_t>(p.tiles) * p.stages * stage_k / p.ctas + extra.pieces;
}

// All tiles whole, in turns; `most` is how many blocks the GPU runs at once.
inline Plan whole_plan(int64_t row_tiles, int64_t column_tiles, int stages, int most) {
  Plan p{};
  p.split = 1;
  p.row_tiles = static_cast<int>(row_tiles), p.column_tiles = static_cast<int>(column_tiles), p.stages = stages;
  p.tiles = p.row_tiles * p.column_tiles;
  p.whole = (p.tiles + most - 1) / most;
  p.ctas = std::min(p.tiles, most);
  return p;
}

// The tiles of the last turn are cut where that is sooner done, into shares of 512 k or more.
inline Plan make_plan(int64_t row_tiles, int64_t column_tiles, int stages, int stage_k, int most, const Extra& extra) {
  const Plan whole = whole_plan(row_tiles, column_tiles, stages, most);
  Plan cut = whole;
  cut.whole = cut.tiles / most, cut.rest = cut.tiles % most;
  const int64_t shares = std::min<int64_t>(most, static_cast<int64_t>(cut.rest) * stages * stage_k / 512);
  cut.ctas = cut.whole > 0 ? most : static_cast<int>(std::max<int64_t>(cut.rest, shares));
  const bool sooner = cost_of(cut, stage_k, extra) < cost_of(whole, stage_k, extra);
  return cut.rest != cut.ctas && sooner ? cut : whole;
}

// Each tile by a cluster of `split` blocks.
inline Plan split_plan(const Plan& whole, int split) {
  Plan p = whole;
  p.split = split, p.ctas = p.tiles * split, p.whole = 1, p.rest = 0;
  return p;
}

inline int widest_of(const Matrix& m) {
  int widest = 2;
  for (int i = 0; i < m.segments; ++i) widest = widest > m.segment[i].bits ? widest : m.segment[i].bits;
  return widest;
}

inline int stages_of(const Matrix& m, int blocks) {
  int stages = 0;
  for (int i = 0; i < m.segments; ++i) stages += (m.segment[i].count + blocks - 1) / blocks;
  return stages;
}

// Bytes of the pieces of tiles of `numbers` numbers.
inline int64_t piece_bytes(const Plan& p, int64_t numbers) {
  return p.rest == 0 ? 0 : static_cast<int64_t>(p.ctas + p.rest) * numbers * static_cast<int64_t>(sizeof(float));
}

template <typename T>
Output<T> output_of(const QMatmulArgs& a) {
  return {static_cast<const T*>(a.bias), static_cast<const T*>(a.add), a.add_stride, static_cast<T*>(a.y), a.M,
          static_cast<int32_t>(a.N)};
}

struct Work {
  int tile, begin, end;  // stages
  int slot;              // where the sums of a piece go; -1: the tile is whole
};

struct Works {
  const Plan& plan;
  int cta, turn = 0, at, past;

  __device__ Works(const Plan& p, int c) : plan(p), cta(c), at(p.share(c)), past(p.share(c + 1)) {}
  __device__ bool next(Work* w) {
    if (plan.split > 1) {
      const int rank = cta % plan.split;
      *w = {cta / plan.split, rank * plan.stages / plan.split, (rank + 1) * plan.stages / plan.split, -1};
      return turn++ == 0;
    }
    if (turn < plan.whole && plan.ctas * turn + cta < plan.tiles) {
      *w = {plan.ctas * turn++ + cta, 0, plan.stages, -1};
      return true;
    }
    if (at >= past) return false;
    const int r = at / plan.stages, begin = at - r * plan.stages, end = min(plan.stages, begin + past - at);
    *w = {plan.ctas * plan.whole + r, begin, end, end - begin == plan.stages ? -1 : cta + r};
    at += end - begin;
    return true;
  }
};

// A thread's sums of kBlocks blocks of 64 columns, to y or, as a piece, to scratch. n is the column of the first
// block's 16 that are the warp's, `piece` where the thread's first four sums go. A piece is of kPieceRows rows.
template <typename T, int kBlocks, int kRows, int kPieceRows = kRows>
__device__ void store_sums(const Output<T>& o, int64_t row, int64_t n, bool whole, float4* piece,
                           float (&sums)[kBlocks][kRows / 2]) {
  // Two loops: with one, the sums would be indexed at run time, and so lie in memory.
  if (whole) {
#pragma unroll
    for (int j = 0; j < kBlocks * kRows / 8; ++j) {
      const float* from = &sums[j / (kRows / 8)][j % (kRows / 8) * 4];
      float v[4] = {from[0], from[1], from[2], from[3]};
      int64_t at = row + j % (kRows / 8) * 8;
      asm volatile("" : "+l"(at)::"memory");  // one block's addresses at a time: there are no registers for all
      finish_block(o, at, n + j / (kRows / 8) * 64, v);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kBlocks * kRows / 8; ++j) {
      const float* v = &sums[j / (kRows / 8)][j % (kRows / 8) * 4];
      piece[(j / (kRows / 8) * (kPieceRows / 8) + j % (kRows / 8)) * 128] = make_float4(v[0], v[1], v[2], v[3]);
    }
  }
}

// The tiles that were cut: their pieces are added in the order of k. One block: 64 columns of a tile. A piece is
// [64 columns of the tile][8 rows][128 threads], the sums as finish_block() wants them.
template <typename T, int kParts, int kRows>
__global__ void __launch_bounds__(128) add_pieces_kernel(const Plan plan, const Output<T> o, const float4* pieces) {
  constexpr int kColumns = kParts * 64;
  const int r = blockIdx.x / kParts, part = blockIdx.x % kParts;
  const int64_t first_stage = static_cast<int64_t>(r) * plan.stages,
                all = static_cast<int64_t>(plan.rest) * plan.stages;
  int first = static_cast<int>(first_stage * plan.ctas / all), last = first;
  while (plan.share(first + 1) <= first_stage) ++first;  // the CTA with the first stage
  for (last = first; plan.share(last + 1) < first_stage + plan.stages;) ++last;
  wait_for_previous();
  let_next_begin();
  if (first == last) return;  // whole after all
  const auto [row_tile, column_tile] = place_of(plan.ctas * plan.whole + r, plan.row_tiles, plan.column_tiles);
  const int64_t n = static_cast<int64_t>(column_tile) * kColumns + (part * 4 + threadIdx.x / 32) * 16;
  const int j = blockIdx.y;
  const float4* from =
      pieces + ((static_cast<int64_t>(first + r) * kParts + part) * (kRows / 8) + j) * 128 + threadIdx.x;
  constexpr int kApart = kParts * (kRows / 8) * 128, kAtOnce = 4;  // loads under way
  float v[4] = {};
  for (int left = last - first + 1; left > 0; left -= kAtOnce, from += kAtOnce * kApart) {
    float4 q[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (i < left) q[i] = __ldcg(from + i * kApart);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (i < left) v[0] += q[i].x, v[1] += q[i].y, v[2] += q[i].z, v[3] += q[i].w;
  }
  finish_block(o, static_cast<int64_t>(row_tile) * kRows + 8 * j, n, v);
}

template <typename T, int kParts, int kRows>
Status add_pieces(const Plan& plan, const Output<T>& o, const float4* pieces, Stream stream) {
  if (plan.rest == 0) return {};
  return launch(add_pieces_kernel<T, kParts, kRows>, dim3(plan.rest * kParts, kRows / 8), dim3(128), 0, stream,
                gpu().sm >= 90, plan, o, pieces);
}

}  // namespace nybble::cuda::wide
