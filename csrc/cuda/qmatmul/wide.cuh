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

// Sums of 8 rows and 16 columns: lane 4 g + t brings v[2 h + e], of row 2 t + e and column 8 h + g, and gets four
// neighbours of row g, from this column on.
__device__ inline int column_of_four(int t) { return t % 2 != 0 ? 8 + 2 * (t - 1) : 2 * t; }
template <typename T>
__device__ uint2 packed_block(const float (&v)[4]) {
  const bool odd = threadIdx.x % 2 != 0;
  uint32_t pair[2];  // row + g, columns n + 8 h + 2 t, 2 t + 1
#pragma unroll
  for (int h = 0; h < 2; ++h) pair[h] = transposed(pack<T>(v[2 * h], v[2 * h + 1]));
  const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? pair[0] : pair[1], 1);
  return odd ? make_uint2(other, pair[1]) : make_uint2(pair[0], other);
}

// The way back: four neighbours of row + g are added where packed_block() would have taken them from.
template <typename T>
__device__ void add_packed(float (&v)[4], const uint2& four) {
  const bool odd = threadIdx.x % 2 != 0;
  const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? four.x : four.y, 1);
  const uint32_t pair[2] = {odd ? other : four.x, odd ? four.y : other};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t two = transposed(pair[h]);
    const T* numbers = reinterpret_cast<const T*>(&two);
    v[2 * h] += to_float(numbers[0]), v[2 * h + 1] += to_float(numbers[1]);
  }
}

// y = v + bias + add, rounded once, of 8 rows from `row` on and 16 columns from n on. What lies beyond y is left out.
template <typename T>
__device__ void finish_block(const Output<T>& o, int64_t row, int64_t n, float (&v)[4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
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
  }
  const uint2 four = packed_block<T>(v);
  const int64_t column = n + column_of_four(t);
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
//
// Or, with `own`, the rest are not cut evenly: each has a block of its own, which takes its first `own` stages, and the
// other blocks, the helpers, share what is left, the tails.
struct Plan {
  int ctas, whole, rest;
  int stages;  // of a tile
  int tiles;
  int row_tiles, column_tiles;
  int split;  // not 1: each tile is the work of a cluster of so many blocks, each of which has a stretch of its stages
  int own;

  __host__ __device__ int helpers() const { return ctas - rest; }
  __host__ __device__ int tail() const { return stages - own; }
  __host__ __device__ int helped(int helper) const {  // the first of its stages of all tails
    return static_cast<int>(static_cast<uint32_t>(helper * rest * tail()) / static_cast<uint32_t>(helpers()));
  }

  __host__ __device__ int share(int cta) const {  // the first of its stages of the rest
    return static_cast<int>(static_cast<int64_t>(cta) * rest * stages / ctas);
  }
  __host__ __device__ int owner(int64_t stage) const {  // of a stage of the rest: the last whose share begins there
    return static_cast<int>(((stage + 1) * ctas - 1) / (static_cast<int64_t>(rest) * stages));
  }
};

// What it takes to add up the pieces of tiles by a second kernel, the sums of a cluster, or those of tails, as k that
// take as long.
struct Extra {
  int pieces, exchange;
  int tile = 0;  // more for pieces, for each tile
  int tails = 0;
};

// The k that a block goes through one after the other.
inline int64_t cost_of(const Plan& p, int stage_k, const Extra& extra) {
  if (p.split > 1) return static_cast<int64_t>((p.stages + p.split - 1) / p.split) * stage_k + extra.exchange;
  if (p.own > 0) return (static_cast<int64_t>(p.whole) * p.stages + p.own) * stage_k + extra.tails;
  if (p.rest == 0) return static_cast<int64_t>(p.whole) * p.stages * stage_k;
  return static_cast<int64_t>(p.tiles) * p.stages * stage_k / p.ctas + extra.pieces + p.rest * extra.tile;
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
  int cta, turn = 0, at, past;  // stages of the rest, of the block's own tile of it, or of the tails

  __device__ Works(const Plan& p, int c) : plan(p), cta(c) {
    if (p.rest == 0)
      at = past = 0;  // at once: divisions are long
    else if (p.own == 0)
      at = p.share(c), past = p.share(c + 1);
    else if (c < p.rest)
      at = 0, past = p.own;
    else
      at = p.helped(c - p.rest), past = p.helped(c - p.rest + 1);
  }
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
    const int base = plan.ctas * plan.whole;
    if (plan.own > 0) {
      if (cta < plan.rest) {
        *w = {base + cta, 0, past, -1};
        at = past;
        return true;
      }
      const int tail = plan.tail(), r = at / tail, begin = at - r * tail, end = min(tail, begin + past - at);
      *w = {base + r, plan.own + begin, plan.own + end, cta - plan.rest + r};
      at += end - begin;
      return true;
    }
    const int r = at / plan.stages, begin = at - r * plan.stages, end = min(plan.stages, begin + past - at);
    *w = {base + r, begin, end, end - begin == plan.stages ? -1 : cta + r};
    at += end - begin;
    return true;
  }
};

// Whether four neighbours of a row of `add` can be read at once.
template <typename T>
__device__ bool adds_in_fours(const Output<T>& o) {
  return o.add == nullptr || ((reinterpret_cast<uintptr_t>(o.add) / sizeof(T)) | o.add_stride) % 4 == 0;
}

// Sums of kBlocks blocks of 64 columns, all of which y has, to y: kMore, plus bias and add.
template <typename T, int kBlocks, int kRows, bool kMore>
__device__ void finish_inside(const Output<T>& o, int64_t row, int64_t n, const float (&sums)[kBlocks][kRows / 2]) {
  constexpr int kFours = kRows / 8, kAtOnce = kFours < 4 ? kFours : 4;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  T* to = o.y + (row + g) * o.N + n + column_of_four(t);
  const T* from = o.add + (row + g) * o.add_stride + n + column_of_four(t);
  const int64_t step = int64_t{8} * o.N, add_step = 8 * o.add_stride;
  const int rows = static_cast<int>(min(o.M - row, int64_t{kRows})) - g;  // from the lane's first on
#pragma unroll
  for (int b = 0; b < kBlocks; ++b, to += 64 - step * kFours, from += 64 - add_step * kFours) {
    float bias[2] = {};
    if constexpr (kMore)
      if (o.bias != nullptr) bias[0] = to_float(o.bias[n + 64 * b + g]), bias[1] = to_float(o.bias[n + 64 * b + 8 + g]);
#pragma unroll
    for (int first = 0; first < kFours; first += kAtOnce) {
      [[maybe_unused]] uint2 add[kAtOnce] = {};
      if constexpr (kMore) {
        if (o.add != nullptr) {
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j, from += add_step)
            if (8 * (first + j) < rows) add[j] = *reinterpret_cast<const uint2*>(from);
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j, to += step) {
        float v[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = sums[b][4 * (first + j) + e] + (kMore ? bias[e / 2] : 0.0f);
        if constexpr (kMore) add_packed<T>(v, add[j]);
        asm volatile("" : "+l"(to));  // not all addresses at once
        const uint2 four = packed_block<T>(v);
        if (8 * (first + j) < rows) *reinterpret_cast<uint2*>(to) = four;
      }
    }
  }
}

// A thread's sums of kBlocks blocks of 64 columns, to y or, as a piece, to scratch. n is the column of the first
// block's 16 that are the warp's, `piece` where the thread's first four sums go. A piece is of kPieceRows rows.
template <typename T, int kBlocks, int kRows, int kPieceRows = kRows>
__device__ void store_sums(const Output<T>& o, int64_t row, int64_t n, bool whole, float4* piece,
                           float (&sums)[kBlocks][kRows / 2]) {
  // This code runs once, and takes as long as its instructions take to be fetched: what is usual has few. Only where
  // columns end are sums looked for one by one, and so lie in memory.
  const bool inside = n + 64 * (kBlocks - 1) + 16 <= o.N && o.N % 4 == 0 && adds_in_fours(o);
  if (whole && inside && o.bias == nullptr && o.add == nullptr) {
    finish_inside<T, kBlocks, kRows, false>(o, row, n, sums);
  } else if (whole && inside) {
    finish_inside<T, kBlocks, kRows, true>(o, row, n, sums);
  } else if (whole) {
    float copies[kBlocks * kRows / 2];
#pragma unroll
    for (int i = 0; i < kBlocks * kRows / 2; ++i) copies[i] = sums[i / (kRows / 2)][i % (kRows / 2)];
#pragma unroll 1
    for (int j = 0; j < kBlocks * kRows / 8; ++j) {
      float v[4] = {copies[4 * j], copies[4 * j + 1], copies[4 * j + 2], copies[4 * j + 3]};
      finish_block(o, row + j % (kRows / 8) * 8, n + j / (kRows / 8) * 64, v);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kBlocks * kRows / 8; ++j) {
      const float* v = &sums[j / (kRows / 8)][j % (kRows / 8) * 4];
      piece[(j / (kRows / 8) * (kPieceRows / 8) + j % (kRows / 8)) * 128] = make_float4(v[0], v[1], v[2], v[3]);
    }
  }
}

// The tiles that were cut: their pieces are added in the order of k. One block: 64 columns of a tile and kEach times 8
// rows, with all that it reads under way at once. A piece is [64 columns of the tile][8 rows][128 threads], the sums as
// finish_block() wants them.
template <int kRows>
constexpr int kEach = kRows >= 128  ? 4
                      : kRows >= 64 ? 2
                                    : 1;
template <typename T, int kParts, int kRows>
__global__ void __launch_bounds__(128) add_pieces_kernel(const Plan plan, const Output<T> o, const float4* pieces) {
  constexpr int kColumns = kParts * 64, kMine = kEach<kRows>;
  const int r = blockIdx.x / kParts, part = blockIdx.x % kParts;
  const int first = plan.owner(static_cast<int64_t>(r) * plan.stages),
            last = plan.owner(static_cast<int64_t>(r + 1) * plan.stages - 1);
  const auto [row_tile, column_tile] = place_of(plan.ctas * plan.whole + r, plan.row_tiles, plan.column_tiles);
  const int64_t n = static_cast<int64_t>(column_tile) * kColumns + (part * 4 + threadIdx.x / 32) * 16;
  const int j = blockIdx.y * kMine;
  wait_for_previous();
  let_next_begin();
  if (first == last) return;  // whole after all
  const float4* from =
      pieces + ((static_cast<int64_t>(first + r) * kParts + part) * (kRows / 8) + j) * 128 + threadIdx.x;
  constexpr int kApart = kParts * (kRows / 8) * 128, kAtOnce = 6;  // loads under way of each
  float v[1][4 * kMine] = {};
  for (int left = last - first + 1; left > 0; left -= kAtOnce, from += kAtOnce * kApart) {
    float4 q[kMine][kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int e = 0; e < kMine; ++e)
        if (i < left) q[e][i] = __ldcg(from + i * kApart + e * 128);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int e = 0; e < kMine; ++e)
        if (i < left) {
          float* sum = &v[0][4 * e];
          sum[0] += q[e][i].x, sum[1] += q[e][i].y, sum[2] += q[e][i].z, sum[3] += q[e][i].w;
        }
  }
  store_sums<T, 1, 8 * kMine>(o, static_cast<int64_t>(row_tile) * kRows + 8 * j, n, true, nullptr, v);
}

template <typename T, int kParts, int kRows>
Status add_pieces(const Plan& plan, const Output<T>& o, const float4* pieces, Stream stream) {
  if (plan.rest == 0 || plan.own > 0) return {};
  return launch(add_pieces_kernel<T, kParts, kRows>, dim3(plan.rest * kParts, kRows / 8 / kEach<kRows>), dim3(128), 0,
                stream, gpu().sm >= 90, plan, o, pieces);
}

}  // namespace nybble::cuda::wide
