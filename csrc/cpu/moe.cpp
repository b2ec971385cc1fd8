#include "ops/moe.h"

#include <cmath>
#include <limits>

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu {
namespace {

// Keeps the k largest logits in `top`, sorted, with their indices in `experts`. By insertion: there are a few hundred
// experts and a few places. Returns false where there is a nan.
template <typename T>
bool choose(const T* x, int64_t E, int64_t k, float* top, int64_t* experts) {
  int64_t kept = 0;
  for (int64_t e = 0; e < E; ++e) {
    const float v = generic::to_float(x[e]);
    if (v != v) return false;
    if (kept == k && !(v > top[k - 1])) continue;
    int64_t at = kept < k ? kept++ : k - 1;
    for (; at > 0 && v > top[at - 1]; --at) {
      top[at] = top[at - 1];
      experts[at] = experts[at - 1];
    }
    top[at] = v;
    experts[at] = e;
  }
  return true;
}

template <typename T>
void route_row(const MoeRouteArgs& a, const T* x, float* weights, int64_t* experts) {
  if (!choose(x, a.E, a.k, weights, experts) || std::isinf(weights[0])) {
    for (int64_t j = 0; j < a.k; ++j) {
      weights[j] = std::numeric_limits<float>::quiet_NaN();
      experts[j] = j;
    }
    return;
  }
  const float largest = weights[0];
  double sum = 0;
  if (!a.renormalize)
    for (int64_t e = 0; e < a.E; ++e) sum += std::exp(generic::to_float(x[e]) - largest);
  for (int64_t j = 0; j < a.k; ++j) {
    weights[j] = std::exp(weights[j] - largest);
    if (a.renormalize) sum += weights[j];
  }
  for (int64_t j = 0; j < a.k; ++j) weights[j] = float(weights[j] / sum);
}

}  // namespace

Status moe_route(const MoeRouteArgs& a) {
  generic::with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.R, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        route_row(a, static_cast<const T*>(a.logits) + r * a.logits_stride, a.weights + r * a.k, a.experts + r * a.k);
    });
  });
  return {};
}

}  // namespace nybble::cpu
