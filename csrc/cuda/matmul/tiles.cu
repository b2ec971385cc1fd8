// y = x @ weight^T + bias for many rows, in float32 multiply-adds: for types that differ, which no library multiplies.
//
//                 weight^T [ kTile columns ]
//                          |  64 of N      |   a block makes a 64 x 64 tile of y, kDepth of K at a time; both inputs
//   x [ 64 of M ]  x       |  16 of K      |   lie in shared memory as float, K first. Thread (i, j) of 16 x 16 has
//     [ 16 of K ]          [               ]   4 x 4 results. The next piece of K is on its way meanwhile.
#include "cuda/common/launch.cuh"
#include "cuda/common/wide.cuh"
#include "cuda/matmul/strategies.h"

namespace nybble::cuda {
namespace {

constexpr int kTile = 64, kDepth = 16, kThreads = 256, kMine = 4;

// One thread's share of a [kTile, kDepth] piece of a matrix: 8 numbers of one row. Half the threads load x, half
// weight.
constexpr int kShare = 8, kLoaders = kTile * kDepth / kShare;
static_assert(2 * kLoaders == kThreads, "every thread loads once");

template <typename T, bool kWhole>
__device__ inline void fetch(const T* row, int64_t k, int64_t K, float (&v)[kShare]) {
  if constexpr (kWhole) {  // K is a multiple of kShare
#pragma unroll
    for (int j = 0; j < kShare; ++j) v[j] = 0.0f;
    if (k < K) load(row + k, v);
  } else {
#pragma unroll
    for (int j = 0; j < kShare; ++j) v[j] = k + j < K ? to_float(row[k + j]) : 0.0f;
  }
}

template <typename T, typename W, bool kWhole>
__global__ void __launch_bounds__(kThreads) tiles_kernel(MatmulArgs a,        // as ops/matmul.h says
                                                         unsigned tiles_m) {  // tiles along M, next to each other
  // A row of 4 more: the four rows that a warp writes at once then lie in other banks.
  __shared__ __align__(16) float piece[2][kDepth][kTile + 4];  // x, weight
  const int64_t m0 = static_cast<int64_t>(blockIdx.x % tiles_m) * kTile;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x / tiles_m) * kTile;
  const int t = threadIdx.x;
  wait_for_previous();
  let_next_begin();

  // Beyond the last row the last one is read again, and nothing is written.
  const int side = t / kLoaders, line = t % kLoaders / 2, from = t % 2 * kShare;
  const int64_t m = m0 + line < a.M ? m0 + line : a.M - 1, n = n0 + line < a.N ? n0 + line : a.N - 1;
  const T* x = static_cast<const T*>(a.x) + m * a.x_stride;
  const W* weight = static_cast<const W*>(a.weight) + n * a.K;
  float next[kShare];
  const auto fetch_next = [&](int64_t k) {
    if (side == 0)
      fetch<T, kWhole>(x, k + from, a.K, next);
    else
      fetch<W, kWhole>(weight, k + from, a.K, next);
  };

  const int i = t / 16 * kMine, j = t % 16 * kMine;  // my results in the tile
  float sum[kMine][kMine] = {};
  fetch_next(0);
  for (int64_t k = 0; k < a.K; k += kDepth) {
#pragma unroll
    for (int d = 0; d < kShare; ++d) piece[side][from + d][line] = next[d];
    __syncthreads();
    if (k + kDepth < a.K) fetch_next(k + kDepth);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float p[kMine], q[kMine];
      load(&piece[0][d][i], p);
      load(&piece[1][d][j], q);
#pragma unroll
      for (int r = 0; r < kMine; ++r)
#pragma unroll
        for (int c = 0; c < kMine; ++c) sum[r][c] += p[r] * q[c];
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < kMine; ++r)
#pragma unroll
    for (int c = 0; c < kMine; ++c) {
      if (m0 + i + r >= a.M || n0 + j + c >= a.N) continue;
      const float bias = a.bias == nullptr ? 0.0f : to_float(static_cast<const W*>(a.bias)[n0 + j + c]);
      static_cast<T*>(a.y)[(m0 + i + r) * a.N + n0 + j + c] = from_float<T>(sum[r][c] + bias);
    }
}

}  // namespace

Status matmul_tiles(const MatmulArgs& a, Stream stream) {
  const int64_t tiles_m = (a.M + kTile - 1) / kTile, tiles_n = (a.N + kTile - 1) / kTile;
  if (tiles_m > 0x7fffffff / tiles_n) return {"matmul: more results than a grid has blocks for"};
  const bool whole =
      a.K % kShare == 0 && wide(a.x, a.x_dtype, a.x_stride, kShare) && wide(a.weight, a.w_dtype, a.K, kShare);
  return with_type(a.x_dtype, [&](auto x) {
    return with_type(a.w_dtype, [&](auto w) -> Status {
      using T = typename decltype(x)::type;
      using W = typename decltype(w)::type;
      if constexpr (std::is_same_v<T, W>) {
        return {"matmul: many rows of one type are the library's"};
      } else {
        const auto kernel = whole ? tiles_kernel<T, W, true> : tiles_kernel<T, W, false>;
        return launch(kernel, dim3(static_cast<unsigned>(tiles_m * tiles_n)), dim3(kThreads), 0, stream, gpu().sm >= 90,
                      a, static_cast<unsigned>(tiles_m));
      }
    });
  });
}

}  // namespace nybble::cuda
