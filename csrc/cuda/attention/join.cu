// o[row] = sum over parts of exp(largest[part] - largest) sums[part], divided by the same sum of totals.
//
// One block a row: each warp adds up every kWarps-th part, a lane four channels at a time, and the warps' sums are
// added in shared memory.
#include "cuda/attention/parts.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

template <typename T>
__global__ void __launch_bounds__(kThreads) join_kernel(const Parts parts,  // of all rows
                                                        T* o,               // [rows, D]
                                                        int D) {
  __shared__ float weights[kMostParts];
  __shared__ float4 of_warp[kWarps][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x, count = parts.count;
  wait_for_previous();
  let_next_begin();

  float top = -INFINITY, total = 0;
  for (int p = threadIdx.x; p < count; p += kThreads) top = Max::join(top, parts.state_of(row, p).largest);
  top = block_reduce<Max, kThreads>(top);
  for (int p = threadIdx.x; p < count; p += kThreads) {
    weights[p] = softmax_weight(parts.state_of(row, p).largest, top);
    total += parts.state_of(row, p).total * weights[p];
  }
  total = block_reduce<Add, kThreads>(total);
  const float factor = total == 0 ? 0.0f : 1.0f / total;

  for (int d = 0; d < D; d += kThreads) {
    float4 sum{};
    if (d + 4 * lane < D) {
#pragma unroll 8
      for (int p = warp; p < count; p += kWarps) {
        const float4 s = *reinterpret_cast<const float4*>(parts.sums_of(row, p, D) + d + 4 * lane);
        sum.x += s.x * weights[p], sum.y += s.y * weights[p], sum.z += s.z * weights[p], sum.w += s.w * weights[p];
      }
    }
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (d + threadIdx.x < D) {
      float all = 0;
      for (int w = 0; w < kWarps; ++w) all += reinterpret_cast<const float*>(of_warp[w])[threadIdx.x];
      o[static_cast<int64_t>(row) * D + d + threadIdx.x] = from_float<T>(all * factor);
    }
    __syncthreads();
  }
}

}  // namespace

Status join_parts(const Parts& parts, void* o, DType dtype, int64_t rows, int64_t D, Stream stream) {
  return with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(join_kernel<T>, static_cast<unsigned>(rows), kThreads, 0, stream, gpu().sm >= 90, parts,
                  static_cast<T*>(o), D);
  });
}

}  // namespace nybble::cuda
