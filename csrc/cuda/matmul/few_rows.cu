// y = x @ weight^T + bias for few rows of x: the weight is read once, at the speed of memory.
//
//   weight, kColumns rows of it  [ l0 | l1 | ... | l31 | l0 | ... ]   a warp: 16 bytes a lane, kSteps of them in flight
//   x, kRows rows                [ l0 | l1 | ... | l31 | l0 | ... ]   from the first cache; each load serves kColumns
//
// Where columns are few, `parts` warps of a block share one group of columns and add up in shared memory, in order.
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/wide.cuh"
#include "cuda/matmul/strategies.h"

namespace nybble::cuda {
namespace {

constexpr int kWarps = 8;

// Of one kernel: rows of x and columns of y a warp works on, 16-byte loads in flight for each column.
template <int kRows_, int kColumns_, int kSteps_, int kBlocks_ = 1>
struct Shape {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kSteps = kSteps_;
  static constexpr int kBlocks = kBlocks_;  // that should fit a multiprocessor: more of them hide more than more steps
};

template <typename T, typename W, int V, typename S>
__global__ void __launch_bounds__(kWarps * 32, S::kBlocks)
    few_rows_kernel(MatmulArgs a,  // as ops/matmul.h says
                    int parts) {   // warps that share a group of columns
  constexpr int kRows = S::kRows, kColumns = S::kColumns, kSteps = S::kSteps;
  constexpr int64_t kStride = 32 * V;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % parts;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * (kWarps / parts) + warp / parts) * kColumns;
  const int64_t m0 = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t share = (a.K + parts * kStride - 1) / (parts * kStride) * kStride;
  const int64_t end = share * (part + 1) < a.K ? share * (part + 1) : a.K;
  int64_t k0 = share * part + lane * V;

  // Beyond the last column or row the last one is read again, and nothing is written.
  const W* weight[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    weight[c] = static_cast<const W*>(a.weight) + (first + c < a.N ? first + c : a.N - 1) * a.K;
  const T* x[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) x[m] = static_cast<const T*>(a.x) + (m0 + m < a.M ? m0 + m : a.M - 1) * a.x_stride;

  // Into the second cache only: a kernel may just have made this weight.
#pragma unroll
  for (int u = 0; u < kSteps; ++u)
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (k0 + u * kStride < end) prefetch(weight[c] + k0 + u * kStride);
  wait_for_previous();
  let_next_begin();

  float sum[kRows][kColumns] = {};
  for (; k0 < end; k0 += kSteps * kStride) {
    Pack<W, V> w[kSteps][kColumns];
#pragma unroll
    for (int u = 0; u < kSteps; ++u)
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (k0 + u * kStride < end) w[u][c] = load_once<W, V>(weight[c] + k0 + u * kStride);
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const int64_t k = k0 + u * kStride;
      if (k >= end) break;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        float v[V];
        load(x[m] + k, v);
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
#pragma unroll
          for (int j = 0; j < V; ++j) sum[m][c] += v[j] * to_float(w[u][c].v[j]);
      }
    }
  }

  __shared__ float partial[kWarps][kRows * kColumns];
#pragma unroll
  for (int m = 0; m < kRows; ++m)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float all = warp_reduce<Add>(sum[m][c]);
      if (lane == 0) partial[warp][m * kColumns + c] = all;
    }
  __syncthreads();
  const int m = lane / kColumns, c = lane % kColumns;
  if (part != 0 || m >= kRows || m0 + m >= a.M || first + c >= a.N) return;
  float all = 0;
  for (int p = 0; p < parts; ++p) all += partial[warp + p][lane];
  if (a.bias != nullptr) all += to_float(static_cast<const W*>(a.bias)[first + c]);
  static_cast<T*>(a.y)[(m0 + m) * a.N + first + c] = from_float<T>(all);
}

template <typename T, typename W, int V, typename S>
Status launch_shape(const MatmulArgs& a, Stream stream) {
  static_assert(S::kRows * S::kColumns <= 32, "a lane a result");
  const int64_t groups = (a.N + S::kColumns - 1) / S::kColumns, slices = (a.M + S::kRows - 1) / S::kRows;
  // Enough warps to keep every multiprocessor's loads in flight, as long as each has one step of K to itself.
  const int64_t wanted = 16 * gpu().processors;
  int parts = 1;
  while (parts < kWarps && groups * slices * parts < wanted && a.K >= 2 * parts * 32 * V) parts *= 2;
  const int64_t blocks = (groups + kWarps / parts - 1) / (kWarps / parts);
  if (blocks > 0x7fffffff || slices > 65535) return {"matmul: more results than a grid has blocks for"};
  return launch(few_rows_kernel<T, W, V, S>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(slices)),
                dim3(kWarps * 32), 0, stream, gpu().sm >= 90, a, parts);
}

}  // namespace

Status matmul_few_rows(const MatmulArgs& a, Stream stream) {
  return with_type(a.x_dtype, [&](auto x) {
    return with_type(a.w_dtype, [&](auto w) {
      using T = typename decltype(x)::type;
      using W = typename decltype(w)::type;
      constexpr int V = kWide<W>;
      const bool whole = a.K % V == 0 && wide(a.x, a.x_dtype, a.x_stride, V) && wide(a.weight, a.w_dtype, a.K, V);
      if (!whole) return launch_shape<T, W, 1, Shape<1, 1, 4>>(a, stream);
      if (a.M == 1) return launch_shape<T, W, V, Shape<1, 2, 1, 4>>(a, stream);
      if constexpr (sizeof(T) + sizeof(W) == 8)  // other types come with two rows at most (choose.cu)
        if (a.M > 2) return launch_shape<T, W, V, Shape<4, 4, 1>>(a, stream);
      return launch_shape<T, W, V, Shape<2, 4, 1, 4>>(a, stream);
    });
  });
}

}  // namespace nybble::cuda
