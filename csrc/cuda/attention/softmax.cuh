// The softmax of scores that lie in registers as matrix instructions leave them (cuda/common/mma.cuh).
#pragma once
#include "cuda/attention/rows.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/number.cuh"

namespace nybble::cuda {

// The running softmax of one 16 x 8 kN block of scores a warp, as multiply_add leaves them. A lane has two rows.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};  // of this lane's columns only

  // Scores to weights 2^(factor (score - largest)). What was summed before is to be multiplied by `fade`.
  template <int kN>
  __device__ void step(float (&scores)[kN][4], float factor, float (&fade)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = largest[r];
#pragma unroll
      for (int n = 0; n < kN; ++n) top = fmaxf(top, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float base = top == -INFINITY ? 0.0f : top * factor;  // nothing seen yet: every weight is 0
      fade[r] = exp2_approximate(largest[r] * factor - base);
      largest[r] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          scores[n][i] = exp2_approximate(scores[n][i] * factor - base);
          sum += scores[n][i];
        }
      total[r] = total[r] * fade[r] + sum;
    }
  }

  __device__ float sum(int r) const {
    const float pair = total[r] + __shfl_xor_sync(0xffffffffu, total[r], 1);
    return pair + __shfl_xor_sync(0xffffffffu, pair, 2);
  }
  // What the sums of weighted values are multiplied by.
  __device__ float finish(int r) const {
    const float all = sum(r);
    return all == 0 ? 0.0f : 1.0f / all;
  }
};

// Leaves a lane's row r of a part in memory, at row `place` of o; nothing where that is negative.
template <int kN>
__device__ void store_part(const Parts& parts, int part, int64_t place, const Softmax& softmax, int r, float scale,
                           const float (&out)[kN][4], int D) {
  const float total = softmax.sum(r);
  if (place < 0) return;
  const int t = threadIdx.x % 4;
  if (t == 0) parts.state_of(place, part) = {softmax.largest[r] * scale, total};
  float* sums = parts.sums_of(place, part, D) + 2 * t;
#pragma unroll
  for (int n = 0; n < kN; ++n)
    if (8 * n < D) *reinterpret_cast<float2*>(sums + 8 * n) = make_float2(out[n][2 * r], out[n][2 * r + 1]);
}

template <int kN>
__device__ inline void scale_rows(float (&out)[kN][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) out[n][i] *= factor[i / 2];
}

// Weights as the left side of a product: the lane that has a score is the one that needs it.
template <typename T, int kN>
__device__ inline void pack_weights(const float (&scores)[kN][4], uint32_t (&weights)[kN / 2][4]) {
#pragma unroll
  for (int n = 0; n < kN / 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      weights[n][i] = pack<T>(scores[2 * n + i / 2][i % 2 * 2], scores[2 * n + i / 2][i % 2 * 2 + 1]);
}

// Hides what a row may not see. `row`: of the lane's first row; `key`: of the lane's first column.
template <int kN>
__device__ void hide(const AttentionArgs& a, const AttentionRows& rows, int row, int key, float (&scores)[kN][4]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int first = rows.first(a, row + 8 * r) - key, last = rows.last(a, row + 8 * r) - key;
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (8 * n + i < first || 8 * n + i >= last) scores[n][2 * r + i] = -INFINITY;
  }
}

}  // namespace nybble::cuda
