// A sum of partial results, kGroups groups of 64 channels of one row by a warp: lane l has channels 2l and 2l + 1 of
// each, as rotate() wants them.
//   o = sum of 2^(m_i - m) values_i / sum of 2^(m_i - m) weight_i, m the largest m_i; a part's state is {m_i, weight_i}
#pragma once
#include "cuda/common/number.cuh"
#include "cuda/paged_attention/rotate.cuh"

namespace nybble::cuda::paged {

template <int kGroups = 1>
struct Sum {
  float largest = -INFINITY, weight = 0, value[kGroups][2] = {};

  template <int kParts>
  __device__ void add(const float2 (&state)[kParts], const float2 (&values)[kGroups][kParts]) {
    float top = largest;
#pragma unroll
    for (int i = 0; i < kParts; ++i) top = fmaxf(top, state[i].x);
    const float base = top == -INFINITY ? 0.0f : top, fade = exp2_approximate(largest - base);
    largest = top;
    weight *= fade;
    fade_values(fade);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float factor = exp2_approximate(state[i].x - base);
      weight += factor * state[i].y;
      add_values(factor, values, i);
    }
  }

  // The same of parts whose states lanes have, lane l that of part l % kParts; what is no part: {-INFINITY, 0}. The
  // whole warp calls it. Of what is done once every instruction has to be fetched, and this has a third of those of
  // add().
  template <int kParts>
  __device__ void add_spread(float2 state, const float2 (&values)[kGroups][kParts]) {
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
    fade_values(fade);
#pragma unroll
    for (int i = 0; i < kParts; ++i) add_values(__shfl_sync(0xffffffffu, factor, i), values, i);
  }

  // The answer's channels d and d + 1 and those 64 further, rotated back if the values were stored rotated. The whole
  // warp calls it.
  template <typename Type>
  __device__ void write(Type* out, int d, int D, bool rotated) const {
    const float factor = weight == 0 ? 0.0f : 1.0f / (rotated ? 32.0f * weight : weight);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      float v[2] = {value[j][0] * factor, value[j][1] * factor};
      if (rotated) rotate(v);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (d + 64 * j + e < D) out[d + 64 * j + e] = from_float<Type>(v[e]);
    }
  }

 private:
  __device__ void fade_values(float factor) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) value[j][0] *= factor, value[j][1] *= factor;
  }
  template <int kParts>
  __device__ void add_values(float factor, const float2 (&values)[kGroups][kParts], int i) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) value[j][0] += factor * values[j][i].x, value[j][1] += factor * values[j][i].y;
  }
};

}  // namespace nybble::cuda::paged
