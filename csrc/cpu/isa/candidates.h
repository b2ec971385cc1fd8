// What choosing tokens needs of a row of numbers: the largest of every block, which leads to the largest few of the row
// without sorting or even reading the rest again; and the softmax's weights.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>

#include "cpu/simd/vec.h"

namespace nybble::cpu::NYBBLE_ISA {

constexpr int64_t block_size = 64;
constexpr float infinity = std::numeric_limits<float>::infinity();
inline int64_t block_count(int64_t n) { return ceil_div(n, block_size); }

// most[i] = the largest of x[64 i .. 64 i + 63]. False if there is a nan, and then most[] is worth nothing.
inline bool block_maxima(const float* x, int64_t n, float* most) {
  const Vec zero = Vec::zero(), one = Vec::set(1.0f), inf = Vec::set(infinity);
  Vec odd = zero;  // nan once one was seen: inf gives 1, everything below it 0
  float odd_rest = 0;
  for (int64_t begin = 0; begin < n; begin += block_size) {
    const int64_t end = smaller(begin + block_size, n);
    Vec largest = Vec::set(-infinity);
    int64_t i = begin;
    for (; i + Vec::width <= end; i += Vec::width) {
      const Vec v = Vec::load(x + i);
      largest = max(largest, v);
      odd = odd + select_lt(v, inf, zero, min(one, v));  // min's second argument wins where it is nan
    }
    float rest = largest.hmax();
    for (; i < end; ++i) {
      rest = x[i] > rest ? x[i] : rest;
      odd_rest += x[i] < infinity ? 0.0f : x[i] > 0 ? 1.0f : x[i];
    }
    most[begin / block_size] = rest;
  }
  const float all = odd.hsum() + odd_rest;
  return all == all;
}

// A number that at least `wanted` of the row reach, and few more than that do; -inf where blocks do not tell.
inline float reached_by(const float* most, int64_t blocks, int64_t wanted, float* work) {
  if (wanted > blocks) return -infinity;
  std::copy(most, most + blocks, work);
  std::nth_element(work, work + wanted - 1, work + blocks, std::greater<float>());
  return work[wanted - 1];
}

// The first place of x[] that reaches `least`, which some place does.
inline int64_t first_at_least(const float* x, const float* most, float least) {
  int64_t b = 0;
  while (most[b] < least) ++b;
  int64_t i = b * block_size;
  while (x[i] < least) ++i;
  return i;
}

// weight = exp((x - largest) / temperature), with equal shares for infinite logits.
class Softmax {
 public:
  Softmax(float largest, float temperature)
      : largest_(largest),
        // Within bounds that keep 0 * inverse and -inf * inverse what they are.
        inverse_(std::min(std::max(1.0f / temperature, FLT_MIN), FLT_MAX)),
        infinite_(std::isinf(largest)) {}

  float operator()(const float* x, int64_t n, float* weight) const {
    Vec sum = Vec::zero();
    int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) {
      const Vec w = of(Vec::load(x + i));
      w.store(weight + i);
      sum = sum + w;
    }
    float rest = 0;
    if (const int m = int(n - i)) {
      float w[Vec::width];
      of(Vec::load_n(x + i, m)).store(w);
      for (int j = 0; j < m; ++j) rest += weight[i + j] = w[j];
    }
    return sum.hsum() + rest;
  }

 private:
  Vec of(Vec x) const {
    if (infinite_) return select_lt(x, Vec::set(infinity), Vec::zero(), Vec::set(1.0f));
    return exp((x - Vec::set(largest_)) * Vec::set(inverse_));
  }

  float largest_, inverse_;
  bool infinite_;
};

}  // namespace nybble::cpu::NYBBLE_ISA
