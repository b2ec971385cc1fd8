// One row of logits: reading it, its order, its softmax weights.
#pragma once
#include <cfloat>

#include "cuda/sample/team.cuh"

namespace nybble::cuda {

// Whole numbers in the order of the floats, 0 and -0 the same; and back.
__device__ inline unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered(unsigned key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// Calls f(x, i) for each element of the team's row; 16 bytes a load, kFlight of them under way in a thread.
template <unsigned kFlight, typename F>
__device__ void for_each(const Team& team, const float* row, unsigned V, F f) {
  const unsigned head = min(V, static_cast<unsigned>(-reinterpret_cast<uintptr_t>(row) & 15) / 4);
  const unsigned fours = (V - head) / 4, rest = V - 4 * fours;
  const auto* four = reinterpret_cast<const float4*>(row + head);
  const unsigned thread = team.thread(), threads = team.threads();
  for (unsigned at = thread; at < fours; at += kFlight * threads) {
    float4 x[kFlight];
#pragma unroll
    for (unsigned j = 0; j < kFlight; ++j)
      if (at + j * threads < fours) x[j] = __ldg(four + at + j * threads);
#pragma unroll
    for (unsigned j = 0; j < kFlight; ++j) {
      if (at + j * threads >= fours) break;
      const unsigned i = head + 4 * (at + j * threads);
      f(x[j].x, i);
      f(x[j].y, i + 1);
      f(x[j].z, i + 2);
      f(x[j].w, i + 3);
    }
  }
  if (thread < rest) {
    const unsigned i = thread < head ? thread : 4 * fours + thread;
    f(row[i], i);
  }
}

// The largest logit, the lowest id that has it, and the smallest logit above -inf. A NaN is larger than everything.
struct Extent {
  float largest = -INFINITY;
  unsigned id = 0xffffffffu;
  float least = INFINITY;

  __device__ void take(float x, unsigned i) {
    if (x > largest || (x == largest && i < id) || x != x) {
      largest = x;
      id = i;
    }
    if (x > -INFINITY) least = fminf(least, x);
  }
  __device__ Extent operator+(const Extent& other) const {
    const bool first = largest != largest || largest > other.largest || (largest == other.largest && id < other.id);
    Extent e = first ? *this : other;
    e.least = fminf(least, other.least);
    return e;
  }
  __device__ bool nothing() const { return !(largest > -INFINITY); }  // -inf only, or a NaN
};

// weight = exp((x - largest) / temperature), with equal shares for infinite logits.
struct Softmax {
  float largest, inverse;

  __device__ Softmax(float largest, float temperature)
      : largest(largest),
        // Within bounds that keep 0 * inverse and -inf * inverse what they are.
        inverse(fminf(fmaxf(1.0f / temperature, FLT_MIN), FLT_MAX)) {}

  // Where both are infinite the difference is NaN, and fminf takes the other.
  __device__ float operator()(float x) const { return expf(fminf((x - largest) * inverse, 0.0f)); }
};

}  // namespace nybble::cuda
