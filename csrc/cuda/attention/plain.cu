// Attention without tensor cores: every dtype, head size and stride.
//
// A block has kRows rows of one KV head and kColumns output channels, and walks the keys in tiles of 32:
//
//   scores  a warp has four rows, a lane one key: q from shared memory is the same for all lanes; channels in steps
//   values  a lane has four channels of each of the warp's rows; the weight of a key comes from that key's lane
#include "cuda/attention/rows.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"

namespace nybble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 4;
constexpr int kRows = kWarps * kWarpRows;
constexpr int kKeys = 32;
constexpr int kDepth = 64;  // channels of a step of the scores
constexpr int kColumns = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads) plain_kernel(const AttentionArgs a,  // the op's arguments
                                                         int row_blocks,         // of a KV head
                                                         int column_blocks) {    // of a head's channels
  __shared__ float q[kRows][kDepth];
  __shared__ float k[kKeys][kDepth + 1];  // a lane reads a row: the odd stride spreads them over the banks
  __shared__ float v[kKeys][kColumns];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  wait_for_previous();
  let_next_begin();
  const int column0 = blockIdx.x % column_blocks * kColumns, block = blockIdx.x / column_blocks;
  const AttentionRows rows(a, block / row_blocks);
  const int row0 = block % row_blocks * kRows, row_end = min(rows.count, row0 + kRows);
  const int from = rows.first(a, row0), to = rows.last(a, row_end - 1), D = static_cast<int>(a.D);
  const T *keys = rows.keys<T>(a), *values = rows.values<T>(a);

  int first[kWarpRows], last[kWarpRows];
  float largest[kWarpRows], total[kWarpRows], out[kWarpRows][kColumns / 32] = {};
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = min(row0 + warp * kWarpRows + r, rows.count - 1);
    first[r] = rows.first(a, row), last[r] = rows.last(a, row);
    largest[r] = -INFINITY, total[r] = 0;
  }

  for (int s = from; s < to; s += kKeys) {
    float score[kWarpRows] = {};
    for (int d0 = 0; d0 < D; d0 += kDepth) {
      const int depth = min(kDepth, D - d0);
      __syncthreads();
      for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
        const int row = row0 + i / kDepth, d = i % kDepth;
        q[i / kDepth][d] = row < row_end && d < depth ? to_float(rows.query<T>(a, row)[d0 + d]) : 0.0f;
      }
      for (int i = threadIdx.x; i < kKeys * kDepth; i += kThreads) {
        const int key = s + i / kDepth, d = i % kDepth;
        k[i / kDepth][d] = key < to && d < depth ? to_float(keys[key * a.k_stride_s + d0 + d]) : 0.0f;
      }
      __syncthreads();
#pragma unroll 8
      for (int d = 0; d < kDepth; ++d)
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) score[r] += q[warp * kWarpRows + r][d] * k[lane][d];
    }
    for (int i = threadIdx.x; i < kKeys * kColumns; i += kThreads) {
      const int key = s + i / kColumns, d = column0 + i % kColumns;
      v[i / kColumns][i % kColumns] = key < to && d < D ? to_float(values[key * a.v_stride_s + d]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const bool visible = s + lane >= first[r] && s + lane < last[r];
      const float x = visible ? score[r] * a.scale : -INFINITY;
      const float top = Max::join(largest[r], warp_reduce<Max>(x));
      const float base = top == -INFINITY ? 0.0f : top;  // nothing seen yet: every weight is 0
      const float weight = expf(x - base), fade = expf(largest[r] - base);
      total[r] = total[r] * fade + warp_reduce<Add>(weight);
      largest[r] = top;
#pragma unroll
      for (int c = 0; c < kColumns / 32; ++c) out[r][c] *= fade;
#pragma unroll 8
      for (int i = 0; i < kKeys; ++i) {
        const float w = __shfl_sync(0xffffffffu, weight, i);
#pragma unroll
        for (int c = 0; c < kColumns / 32; ++c) out[r][c] += w * v[i][c * 32 + lane];
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = row0 + warp * kWarpRows + r;
    if (row >= row_end) return;
    const float factor = total[r] == 0 ? 0.0f : 1.0f / total[r];
#pragma unroll
    for (int c = 0; c < kColumns / 32; ++c) {
      const int d = column0 + c * 32 + lane;
      if (d < D) static_cast<T*>(a.o)[rows.place(a, row) * D + d] = from_float<T>(out[r][c] * factor);
    }
  }
}

bool supports(const AttentionArgs&) { return true; }

int64_t scratch_bytes(const AttentionArgs&) { return 0; }

Status run(const AttentionArgs& a, Stream stream) {
  const int64_t rows = a.T * (a.H / a.Hk), row_blocks = (rows + kRows - 1) / kRows;
  const int64_t column_blocks = (a.D + kColumns - 1) / kColumns, problems = a.B * a.Hk;
  if (problems > 0x7fffffff / row_blocks / column_blocks) return {"attention: more than 2^31 - 1 blocks"};
  return with_type(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(plain_kernel<T>, static_cast<unsigned>(problems * row_blocks * column_blocks), kThreads, 0, stream,
                  gpu().sm >= 90, a, row_blocks, column_blocks);
  });
}

}  // namespace

const AttentionKernel attention_plain{supports, scratch_bytes, run};

}  // namespace nybble::cuda
