// One group of GPTQ, panels of up to kDepth rows one after another, each in two launches:
//
//        columns ->
//   rows [ quantize_rows: a block takes 32 columns, a lane each; warp w keeps rows w, w + 8, ...  ]  the panel
//        [ spread: minus U^T times the panel's errors, a matrix product in tiles of 128 x 128     ]  all rows below
//
// quantize_rows goes row by row: the warp that has it works out its error, then every warp takes that off its rows.
#include "cuda/common/grid.cuh"
#include "cuda/common/launch.cuh"
#include "ops/gptq.h"

namespace nybble::cuda {
namespace {

constexpr int kGptqThreads = 256, kGptqWarps = kGptqThreads / 32;
constexpr int kDepth = 128, kAhead = 32;   // rows of a panel; those of U in shared memory
constexpr int kOwn = kDepth / kGptqWarps;  // rows that a warp keeps
constexpr int kTile = 128, kTileK = 16;    // spread: rows below and columns of a block, rows of the panel at a time
constexpr int kEach = 8;                   // of a thread: 8 rows by 8 columns

__global__ void __launch_bounds__(kGptqThreads, 2) quantize_rows_kernel(GptqGroupArgs a,  // as ops/gptq.h says
                                                                        int64_t from,     // first row of the panel
                                                                        int depth) {      // its rows, at most kDepth
  constexpr int kCopies = kAhead * kDepth / kGptqThreads;
  __shared__ float u[kAhead][kDepth];  // U[from + r, from + ...] of the next rows
  __shared__ float errors[2][32];      // of a row; who writes the next ones may be ahead of who reads these
  const Grid grid{a.zero, a.last};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t n = int64_t{blockIdx.x} * 32 + lane;
  const bool inside = n < a.N;
  float* weight = a.weight + from * a.weight_stride + n;
  const float* upper = a.cholesky + from * a.cholesky_stride + from;
  const float scale = inside ? a.scales[n] : 1.0f, half_scale = through_half(scale);
  float w[kOwn];  // rows warp, warp + kGptqWarps, ...
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int r = i * kGptqWarps + warp;
    w[i] = inside && r < depth ? weight[r * a.weight_stride] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (i * kGptqWarps % kAhead == 0) {
      float ahead[kCopies];
#pragma unroll
      for (int c = 0; c < kCopies; ++c) {
        const int r = i * kGptqWarps + (threadIdx.x + c * kGptqThreads) / kDepth, q = threadIdx.x % kDepth;
        ahead[c] =
            r <= q && q < depth ? upper[r * a.cholesky_stride + q] : 0.0f;  // what is left of the diagonal is not U
      }
      __syncthreads();  // the rows before are done with
#pragma unroll
      for (int c = 0; c < kCopies; ++c) u[(threadIdx.x + c * kGptqThreads) / kDepth][threadIdx.x % kDepth] = ahead[c];
      __syncthreads();
    }
#pragma unroll 1
    for (int j = 0; j < kGptqWarps; ++j) {
      const int r = i * kGptqWarps + j;
      if (r >= depth) return;
      const float* row = u[r % kAhead];
      float right[kOwn];
#pragma unroll
      for (int k = i; k < kOwn; ++k) right[k] = row[k * kGptqWarps + warp];
      float code = 0, value = 0, error = 0;
      if (warp == j) {
        code = grid.code(__fdiv_rn(w[i], scale));
        value = grid.value(code, half_scale);
        error = __fdiv_rn(w[i] - value, row[r]);
        errors[j % 2][lane] = error;
      }
      __syncthreads();
      const float down = -errors[j % 2][lane];
#pragma unroll
      for (int k = i; k < kOwn; ++k) w[k] = fmaf(right[k], down, w[k]);
      if (warp == j && inside) {
        weight[r * a.weight_stride] = value;
        a.codes[(from + r) * a.codes_stride + n] = static_cast<uint8_t>(code);
        a.error[(from + r) * a.error_stride + n] = error;
      }
    }
  }
}

// kTileK rows of a matrix, `width` of its columns, on their way to shared memory: fetched into registers while the rows
// before them are multiplied.
struct Staged {
  static constexpr int kCount = kTileK * kTile / kGptqThreads;
  float v[kCount];

  __device__ void fetch(const float* from, int64_t stride, int rows, int64_t width) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int k = (threadIdx.x + i * kGptqThreads) / kTile, j = threadIdx.x % kTile;
      v[i] = k < rows && j < width ? from[k * stride + j] : 0.0f;
    }
  }
  __device__ void put(float (&to)[kTileK][kTile]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[(threadIdx.x + i * kGptqThreads) / kTile][threadIdx.x % kTile] = v[i];
  }
};

__global__ void __launch_bounds__(kGptqThreads, 2) spread_kernel(GptqGroupArgs a,  // as ops/gptq.h says
                                                                 int64_t from,     // first row of the panel
                                                                 int depth,        // its rows
                                                                 unsigned column_tiles,
                                                                 bool wide) {  // four weights may be one access
  __shared__ __align__(16) float u[2][kTileK][kTile], e[2][kTileK][kTile];
  const int64_t q0 = from + depth + blockIdx.x / column_tiles * int64_t{kTile};
  const int64_t n0 = blockIdx.x % column_tiles * int64_t{kTile};
  // A warp has 32 rows by 64 columns, a lane four rows and four columns and those 16 rows or 32 columns further.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int q = warp % 4 * 32 + lane / 8 * 4, n = warp / 4 * 64 + lane % 8 * 4;
  const float* upper = a.cholesky + from * a.cholesky_stride + q0;
  const float* errors = a.error + from * a.error_stride + n0;
  Staged next_u, next_e;
  const auto fetch = [&](int k) {
    next_u.fetch(upper + k * a.cholesky_stride, a.cholesky_stride, depth - k, a.T - q0);
    next_e.fetch(errors + k * a.error_stride, a.error_stride, depth - k, a.N - n0);
  };
  float sum[kEach][kEach] = {};
  fetch(0);
  for (int k0 = 0; k0 < depth; k0 += kTileK) {
    const int now = k0 / kTileK % 2;
    next_u.put(u[now]);
    next_e.put(e[now]);
    __syncthreads();  // one a step: who is a step ahead writes the other half
    if (k0 + kTileK < depth) fetch(k0 + kTileK);
#pragma unroll
    for (int k = 0; k < kTileK; ++k) {
      float left[kEach], right[kEach];
#pragma unroll
      for (int i = 0; i < kEach; i += 4) {
        *reinterpret_cast<float4*>(left + i) = *reinterpret_cast<const float4*>(&u[now][k][q + 4 * i]);
        *reinterpret_cast<float4*>(right + i) = *reinterpret_cast<const float4*>(&e[now][k][n + 8 * i]);
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t below = q0 + q + i % 4 + i / 4 * 16;
    if (below >= a.T) return;
#pragma unroll
    for (int j = 0; j < kEach; j += 4) {
      const int64_t column = n0 + n + j * 8;
      float* to = a.weight + below * a.weight_stride + column;
      if (wide && column + 4 <= a.N) {
        float4 four = *reinterpret_cast<const float4*>(to);
        four = {four.x - sum[i][j], four.y - sum[i][j + 1], four.z - sum[i][j + 2], four.w - sum[i][j + 3]};
        *reinterpret_cast<float4*>(to) = four;
      } else {
        for (int k = 0; k < 4 && column + k < a.N; ++k) to[k] -= sum[i][j + k];
      }
    }
  }
}

}  // namespace

Status gptq_group(const GptqGroupArgs& a, Stream stream) {
  if (a.R * a.N == 0) return {};
  const int64_t blocks = (a.N + 31) / 32, column_tiles = (a.N + kTile - 1) / kTile;
  if (blocks > 0x7fffffff || (a.T + kTile - 1) / kTile > 0x7fffffff / column_tiles)
    return {"more numbers than a grid has blocks for"};
  const bool wide = reinterpret_cast<uintptr_t>(a.weight) % 16 == 0 && a.weight_stride % 4 == 0;
  for (int64_t from = 0; from < a.R; from += kDepth) {
    const int depth = static_cast<int>(a.R - from < kDepth ? a.R - from : kDepth);
    quantize_rows_kernel<<<static_cast<unsigned>(blocks), kGptqThreads, 0, native(stream)>>>(a, from, depth);
    const int64_t below = a.T - from - depth;
    if (below == 0) continue;
    const auto tiles = static_cast<unsigned>((below + kTile - 1) / kTile * column_tiles);
    spread_kernel<<<tiles, kGptqThreads, 0, native(stream)>>>(a, from, depth, static_cast<unsigned>(column_tiles),
                                                              wide);
  }
  return launched();
}

}  // namespace nybble::cuda
