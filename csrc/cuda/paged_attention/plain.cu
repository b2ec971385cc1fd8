// Attention over paged keys and values on ordinary units: what the kernels in warp.cuh do not take. float32, GPUs
// before sm_80, head sizes they were not made for, codes whose groups of 64 lie across two heads, and odd alignments.
//
//   a warp   its range of tokens (plan.cuh), one token after the other: key and value to floats in shared memory, then
//            a score for each of up to 8 query rows, summed over the lanes
//   a lane   channels l, l + 32, ... of the key, the value and the running sums
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/rotate.cuh"

namespace nybble::cuda::paged {
namespace {

constexpr int kTileShift = 4, kTile = 1 << kTileShift;

// One head of one token as floats, the rotation undone; NaN where the page does not exist. The whole warp calls it.
template <typename T>
__device__ void read_token(const PagedAttentionArgs& a, const KvPages& kv, int64_t page, int64_t slot, int head,
                           float* to) {
  const int lane = threadIdx.x % 32, D = static_cast<int>(a.D);
  if (page < 0 || page >= a.P) {
    for (int d = lane; d < D; d += 32) to[d] = NAN;
    return;
  }
  const int64_t token = page * kv.stride_page + slot * kv.stride_slot;
  if (kv.kind == KvKind::plain) {
    const T* from = static_cast<const T*>(kv.data) + token + head * kv.stride_head;
    for (int d = lane; d < D; d += 32) to[d] = to_float(from[d]);
    return;
  }
  const uint8_t* bytes = static_cast<const uint8_t*>(kv.data) + token;
  if (kv.kind == KvKind::fp8) {
    for (int d = lane; d < D; d += 32)
      to[d] = __half2float(__ushort_as_half(static_cast<unsigned short>(bytes[head * kv.stride_head + d] << 8)));
    return;
  }
  // Groups are counted from the token's first head; a lane has elements 2l and 2l + 1 of a group.
  const __half* scales = static_cast<const __half*>(kv.scales) + page * kv.scales_page + slot * kv.scales_slot;
  const int begin = head * D;
  for (int group = begin / 64; group * 64 < begin + D; ++group) {
    const int first = group * 64 + 2 * lane;
    const float scale = __half2float(scales[first / 32]) / 32;
    float v[2];
    if (kv.kind == KvKind::q8) {
      v[0] = static_cast<float>(bytes[first] - 128) * scale;
      v[1] = static_cast<float>(bytes[first + 1] - 128) * scale;
    } else {
      v[0] = static_cast<float>((bytes[first / 2] & 15) - 8) * scale;
      v[1] = static_cast<float>((bytes[first / 2] >> 4) - 8) * scale;
    }
    rotate(v);
    for (int e = 0; e < 2; ++e)
      if (first + e >= begin && first + e < begin + D) to[first + e - begin] = v[e];
  }
}

// kLane: channels of a lane, at least D / 32.
template <typename T, int kLane>
__global__ void __launch_bounds__(256, 1)
    plain_kernel(const __grid_constant__ PagedAttentionArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ float shared[];  // of each warp: 8 queries, a key, a value
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, D = static_cast<int>(a.D);
  const int64_t worker = static_cast<int64_t>(blockIdx.x) * plan.warps + warp;
  const int range = static_cast<int>(worker / plan.heads), virtual_head = static_cast<int>(worker % plan.heads);
  wait_for_previous();
  let_next_begin();
  if (range >= (a.invariant ? plan.ranges * a.B : plan.ranges)) return;
  const int head = virtual_head / plan.blocks_of_head, first_row = virtual_head % plan.blocks_of_head * kRows;
  const int group = plan.group, rows = min(kRows, plan.rows - first_row);
  float* queries = shared + warp * (kRows + 2) * D;
  float *key = queries + kRows * D, *value = key + D;

  Work work = work_of(a, plan, range);
  for (int left = work.count; left > 0; ++work.b, work.tile = 0) {
    const int length = length_of(a, plan, work.b);
    const Tiles tiles = tiles_of(a, plan, length);
    const int begin = tiles.first + work.tile, end = min(tiles.last, begin + left);
    if (begin >= end) continue;
    left -= end - begin;

    __syncwarp();
    for (int r = 0; r < rows; ++r) {
      const int row = first_row + r;
      const T* q = static_cast<const T*>(a.q) + work.b * a.q_stride_b + row / group * a.q_stride_t +
                   (head * group + row % group) * a.q_stride_h;
      for (int d = lane; d < D; d += 32) queries[r * D + d] = to_float(q[d]) * a.scale;
    }
    float sums[kRows][kLane] = {}, largest[kRows], weight[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) largest[r] = -INFINITY;

    const int last = min(end * kTile, length);
    for (int s = max(begin * kTile, first_seen(a, length)); s < last; ++s) {
      int64_t page = work.b, slot = s;
      if (a.block_table != nullptr) {
        page = a.block_table[work.b * a.block_table_stride + s / a.page];
        slot = s % a.page;
      }
      __syncwarp();
      read_token<T>(a, a.keys, page, slot, head, key);
      read_token<T>(a, a.values, page, slot, head, value);
      __syncwarp();
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) continue;
        const int row = first_row + r, back = length - static_cast<int>(a.T) + row / group - s;
        float score = 0;
#pragma unroll
        for (int i = 0; i < kLane; ++i)
          if (lane + 32 * i < D) score += queries[r * D + lane + 32 * i] * key[lane + 32 * i];
        score = warp_reduce<Add>(score);
        if (a.softcap > 0) score = a.softcap * tanhf(score / a.softcap);
        if (a.slopes != nullptr) score -= a.slopes[head * group + row % group] * static_cast<float>(back);
        if (back < 0 || (a.window > 0 && back >= a.window)) continue;
        score *= 1.44269504f;
        const float top = fmaxf(largest[r], score);
        const float fade = largest[r] == top ? 1.0f : exp2f(largest[r] - top), now = exp2f(score - top);
        largest[r] = top;
        weight[r] = weight[r] * fade + now;
#pragma unroll
        for (int i = 0; i < kLane; ++i)
          if (lane + 32 * i < D) sums[r][i] = sums[r][i] * fade + now * value[lane + 32 * i];
      }
    }

    const int64_t slot = slot_of(a, range, work.b), row0 = static_cast<int64_t>(head) * plan.rows + first_row;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      float* out = partial_values(a, slot, row0 + r);
#pragma unroll
      for (int i = 0; i < kLane; ++i)
        if (lane + 32 * i < D) out[lane + 32 * i] = sums[r][i];
      if (lane == 0) *partial_state(a, plan, slot, row0 + r) = {largest[r], weight[r]};
    }
  }
}

template <typename T, int kLane>
Status launch_plain(const PagedAttentionArgs& a, const Plan& plan, Stream stream) {
  const int64_t blocks = (workers_of(a, plan) + plan.warps - 1) / plan.warps;
  if (blocks > 0x7fffffff) return {"paged_attention: too many sequences and heads"};
  const auto kernel = plain_kernel<T, kLane>;
  const int bytes = static_cast<int>(plan.warps * (kRows + 2) * a.D * sizeof(float));
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return status(error);
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * plan.warps), bytes, stream, gpu().sm >= 90, a,
                plan);
}

template <typename T>
Launch sized(int64_t D) {
  return D <= 128 ? launch_plain<T, 4> : D <= 256 ? launch_plain<T, 8> : D <= 512 ? launch_plain<T, 16> : nullptr;
}

}  // namespace

Kernel plain_kernel(const PagedAttentionArgs& a) {
  const Launch launch = a.dtype == DType::f32   ? sized<float>(a.D)
                        : a.dtype == DType::f16 ? sized<__half>(a.D)
                                                : sized<__nv_bfloat16>(a.D);
  return {launch, kTileShift, static_cast<int>((kRows + 2) * a.D * sizeof(float))};
}

}  // namespace nybble::cuda::paged
