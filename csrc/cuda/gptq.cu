// One group of GPTQ, panels of up to kDepth rows one after another, each in two launches:
//
//        columns ->
//   rows [ quantize_rows: a block takes 32 columns, a lane each, and keeps them in shared memory. Row by row: every
//          warp works out the row's error, then takes it off its share of the rows below ]          the panel
//        [ spread: minus U^T times those errors, a matrix product in tiles of kTileQ x kTileN ]     all rows below it
#include "cuda/common/grid.cuh"
#include "cuda/common/launch.cuh"
#include "ops/gptq.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kDepth = 128;
constexpr int kTileQ = 64, kTileN = 128, kTileK = 16;  // spread: rows below, columns, rows of the panel at a time
constexpr int kQ = 8, kN = 4;                          // of a thread: 8 rows by 4 columns

__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(GptqGroupArgs a,  // as ops/gptq.h says
                                                                 int64_t from,     // first row of the panel
                                                                 int depth) {      // its rows, at most kDepth
  __shared__ float w[kDepth][32];
  __shared__ float u[2][kDepth];  // U[from + r, from + ...] of this row and the next
  const Grid grid{a.zero, a.last};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t n = int64_t{blockIdx.x} * 32 + lane;
  const bool inside = n < a.N;
  float* weight = a.weight + from * a.weight_stride + n;
  const float* upper = a.cholesky + from * a.cholesky_stride + from;
  for (int q = warp; q < depth; q += kWarps) w[q][lane] = inside ? weight[q * a.weight_stride] : 0.0f;
  if (static_cast<int>(threadIdx.x) < depth) u[0][threadIdx.x] = upper[threadIdx.x];
  __syncthreads();
  const float scale = inside ? a.scales[n] : 1.0f, half_scale = through_half(scale);
  for (int r = 0; r < depth; ++r) {
    const float* row = u[r % 2];
    float next = 0;  // only what lies right of the diagonal is U
    const bool fetches = r + 1 < depth && static_cast<int>(threadIdx.x) > r && static_cast<int>(threadIdx.x) < depth;
    if (fetches) next = upper[(r + 1) * a.cholesky_stride + threadIdx.x];
    const float v = w[r][lane], code = grid.code(__fdiv_rn(v, scale)), value = grid.value(code, half_scale);
    const float error = __fdiv_rn(v - value, row[r]);
    if (warp == r % kWarps && inside) {
      weight[r * a.weight_stride] = value;
      a.codes[(from + r) * a.codes_stride + n] = static_cast<uint8_t>(code);
      a.error[(from + r) * a.error_stride + n] = error;
    }
#pragma unroll 4
    for (int q = r + 1 + ((warp - r - 1) & (kWarps - 1)); q < depth; q += kWarps)
      w[q][lane] = fmaf(-row[q], error, w[q][lane]);
    if (fetches) u[(r + 1) % 2][threadIdx.x] = next;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) spread_kernel(GptqGroupArgs a,  // as ops/gptq.h says
                                                          int64_t from,     // first row of the panel
                                                          int depth,        // its rows
                                                          unsigned column_tiles) {
  __shared__ __align__(16) float u[kTileK][kTileQ], e[kTileK][kTileN];
  const int64_t q0 = from + depth + blockIdx.x / column_tiles * int64_t{kTileQ};
  const int64_t n0 = blockIdx.x % column_tiles * int64_t{kTileN};
  const int q = threadIdx.x / 32 * kQ, n = threadIdx.x % 32;  // columns n, n + 32, ...: neighbours read neighbours
  float sum[kQ][kN] = {};
  for (int k0 = 0; k0 < depth; k0 += kTileK) {
    for (int i = threadIdx.x; i < kTileK * kTileQ; i += kThreads) {
      const int k = i / kTileQ, j = i % kTileQ;
      u[k][j] = k0 + k < depth && q0 + j < a.T ? a.cholesky[(from + k0 + k) * a.cholesky_stride + q0 + j] : 0.0f;
    }
    for (int i = threadIdx.x; i < kTileK * kTileN; i += kThreads) {
      const int k = i / kTileN, j = i % kTileN;
      e[k][j] = k0 + k < depth && n0 + j < a.N ? a.error[(from + k0 + k) * a.error_stride + n0 + j] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTileK; ++k) {
      float left[kQ], right[kN];
#pragma unroll
      for (int i = 0; i < kQ; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(&u[k][q + i]);
        left[i] = four.x, left[i + 1] = four.y, left[i + 2] = four.z, left[i + 3] = four.w;
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) right[j] = e[k][n + 32 * j];
#pragma unroll
      for (int i = 0; i < kQ; ++i)
#pragma unroll
        for (int j = 0; j < kN; ++j) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kQ; ++i) {
    if (q0 + q + i >= a.T) return;
    float* row = a.weight + (q0 + q + i) * a.weight_stride + n0 + n;
#pragma unroll
    for (int j = 0; j < kN; ++j)
      if (n0 + n + 32 * j < a.N) row[32 * j] -= sum[i][j];
  }
}

}  // namespace

Status gptq_group(const GptqGroupArgs& a, Stream stream) {
  if (a.R * a.N == 0) return {};
  const int64_t blocks = (a.N + 31) / 32, column_tiles = (a.N + kTileN - 1) / kTileN;
  if (blocks > 0x7fffffff || (a.T + kTileQ - 1) / kTileQ > 0x7fffffff / column_tiles)
    return {"more numbers than a grid has blocks for"};
  for (int64_t from = 0; from < a.R; from += kDepth) {
    const int depth = static_cast<int>(a.R - from < kDepth ? a.R - from : kDepth);
    quantize_rows_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, native(stream)>>>(a, from, depth);
    const int64_t below = a.T - from - depth;
    if (below == 0) continue;
    const auto tiles = static_cast<unsigned>((below + kTileQ - 1) / kTileQ * column_tiles);
    spread_kernel<<<tiles, kThreads, 0, native(stream)>>>(a, from, depth, static_cast<unsigned>(column_tiles));
  }
  return launched();
}

}  // namespace nybble::cuda
