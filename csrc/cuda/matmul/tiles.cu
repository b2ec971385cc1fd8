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

// kShare numbers of either size, as they lie in memory: what they are is asked when they have arrived.
union Share {
  uint4 words[2];
  uint32_t floats[kShare];
  uint16_t halves[kShare];
};

// `whole`: K is a multiple of kShare, and every row may be read so many numbers at a time.
__device__ inline void fetch(const void* row, bool floats, int64_t k, int64_t K, bool whole, Share& to) {
  to.words[0] = to.words[1] = {};
  if (k >= K) return;
  const auto* number = static_cast<const char*>(row) + k * (floats ? 4 : 2);
  if (whole) {
    to.words[0] = reinterpret_cast<const uint4*>(number)[0];
    if (floats) to.words[1] = reinterpret_cast<const uint4*>(number)[1];
    return;
  }
#pragma unroll
  for (int j = 0; j < kShare; ++j) {
    if (k + j >= K) break;
    if (floats)
      to.floats[j] = reinterpret_cast<const uint32_t*>(number)[j];
    else
      to.halves[j] = reinterpret_cast<const uint16_t*>(number)[j];
  }
}

__device__ inline float number_of(const Share& share, DType type, int j) {
  if (type == DType::f32) return __uint_as_float(share.floats[j]);
  if (type == DType::bf16) return __uint_as_float(static_cast<uint32_t>(share.halves[j]) << 16);
  return __half2float(__ushort_as_half(share.halves[j]));
}

// One kernel for all types: none of them is asked for between a load and the multiply-adds that hide it.
__global__ void __launch_bounds__(kThreads) tiles_kernel(MatmulArgs a,        // as ops/matmul.h says
                                                         bool whole,          // as in fetch
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
  const char* row = side == 0 ? static_cast<const char*>(a.x) + m * a.x_stride * size_of(a.x_dtype)
                              : static_cast<const char*>(a.weight) + n * a.K * size_of(a.w_dtype);
  const DType type = side == 0 ? a.x_dtype : a.w_dtype;
  Share next;
  const auto fetch_next = [&](int64_t k) { fetch(row, type == DType::f32, k + from, a.K, whole, next); };

  const int i = t / 16 * kMine, j = t % 16 * kMine;  // my results in the tile
  float sum[kMine][kMine] = {};
  fetch_next(0);
  for (int64_t k = 0; k < a.K; k += kDepth) {
#pragma unroll
    for (int d = 0; d < kShare; ++d) piece[side][from + d][line] = number_of(next, type, d);
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
  for (int c = 0; c < kMine; ++c) {
    if (n0 + j + c >= a.N) continue;
    float bias[1] = {};
    if (a.bias != nullptr) load(a.bias, a.w_dtype, n0 + j + c, bias);
#pragma unroll
    for (int r = 0; r < kMine; ++r) {
      const float y[1] = {sum[r][c] + bias[0]};
      if (m0 + i + r < a.M) store(a.y, a.x_dtype, (m0 + i + r) * a.N + n0 + j + c, y);
    }
  }
}

}  // namespace

Status matmul_tiles(const MatmulArgs& a, Stream stream) {
  const int64_t tiles_m = (a.M + kTile - 1) / kTile, tiles_n = (a.N + kTile - 1) / kTile;
  if (tiles_m > 0x7fffffff / tiles_n) return {"matmul: more results than a grid has blocks for"};
  const bool whole =
      a.K % kShare == 0 && wide(a.x, a.x_dtype, a.x_stride, kShare) && wide(a.weight, a.w_dtype, a.K, kShare);
  return launch(tiles_kernel, dim3(static_cast<unsigned>(tiles_m * tiles_n)), dim3(kThreads), 0, stream, gpu().sm >= 90,
                a, whole, static_cast<unsigned>(tiles_m));
}

}  // namespace nybble::cuda
