// A sum of partial results, 64 channels of one row by a warp: lane l has channels 2l and 2l + 1, as rotate() wants
// them.
//   o = sum of 2^(m_i - m) values_i / sum of 2^(m_i - m) weight_i, m the largest m_i; a part's state is {m_i, weight_i}
#pragma once
#include "cuda/common/number.cuh"
#include "cuda/paged_attention/rotate.cuh"

namespace nybble::cuda::paged {

struct Sum {
  float largest = -INFINITY, weight = 0, value[2] = {};

  template <int kParts>
  __device__ void add(const float2 (&state)[kParts], const float2 (&values)[kParts]) {
    float top = largest;
#pragma unroll
    for (int i = 0; i < kParts; ++i) top = fmaxf(top, state[i].x);
    const float base = top == -INFINITY ? 0.0f : top, fade = exp2_approximate(largest - base);
    largest = top;
    weight *= fade, value[0] *= fade, value[1] *= fade;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float factor = exp2_approximate(state[i].x - base);
      weight += factor * state[i].y, value[0] += factor * values[i].x, value[1] += factor * values[i].y;
    }
  }

  // The same of parts whose states lanes have, lane l that of part l % kParts; what is no part: {-INFINITY, 0}. The
  // whole warp calls it. Of what is done once every instruction has to be fetched, and this has a third of those of
  // add().
  template <int kParts>
  __device__ void add_spread(float2 state, const float2 (&values)[kParts]) {
    static_assert(kParts == 8 || kParts == 16);
    float top = fmaxf(largest, state.x);
#pragma unroll
    for (int offset = kParts / 2; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
    const float base = top == -INFINITY ? 0.0f : top, fade = exp2_approximate(largest - base);
    const float factor = exp2_approximate(state.x - base);
    float more = factor * state.y;
#pragma unroll
    for (int offset = kParts / 2; offset > 0; offset /= 2) more += __shfl_xor_sync(0xffffffffu, more, offset);
    largest = top;
    weight = weight * fade + more;
    value[0] *= fade, value[1] *= fade;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float f = __shfl_sync(0xffffffffu, factor, i);
      value[0] += f * values[i].x, value[1] += f * values[i].y;
    }
  }

  // The answer's channels d and d + 1, rotated back if the values were stored rotated. The whole warp calls it.
  template <typename Type>
  __device__ void write(Type* out, int d, int D, bool rotated) const {
    const float factor = weight == 0 ? 0.0f : 1.0f / (rotated ? 32.0f * weight : weight);
    float v[2] = {value[0] * factor, value[1] * factor};
    if (rotated) rotate(v);
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (d + e < D) out[d + e] = from_float<Type>(v[e]);
  }
};

}  // namespace nybble::cuda::paged
