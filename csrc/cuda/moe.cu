// moe_route: the k largest of softmax(logits) in each row and their experts, the largest first, the lower index first
// among equals.
//
//   row r  [ l0 | l1 | ... | l31 | l0 | ... ]   a warp a row: k times the next one in order, found by all lanes
//
// Weights in float. A row of up to 256 experts stays in registers.
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "ops/moe.h"

namespace nybble::cuda {
namespace {

constexpr int kRouteWarps = 4;   // rows a block
constexpr int kHeldExperts = 8;  // a lane, where they fit

// A logit as an integer of the same order, and back. -0 counts as 0.
__device__ inline unsigned key_of(float logit) {
  const unsigned bits = __float_as_uint(logit + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float logit_of(unsigned key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// Key and expert in one number, of the order of the answer: larger first, lower index first among equals.
__device__ inline uint64_t choice(unsigned key, unsigned expert) { return static_cast<uint64_t>(key) << 32 | ~expert; }

__device__ inline uint64_t largest_of_warp(uint64_t v) {
  const unsigned high = static_cast<unsigned>(v >> 32), top = warp_max(high);
  return static_cast<uint64_t>(top) << 32 | warp_max(high == top ? static_cast<unsigned>(v) : 0u);
}

template <typename T, bool kHeld>
__global__ void __launch_bounds__(kRouteWarps * 32) moe_route_kernel(MoeRouteArgs a) {  // as ops/moe.h says
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kRouteWarps + threadIdx.x / 32;
  if (r >= a.R) return;
  wait_for_previous();
  let_next_begin();
  const unsigned lane = threadIdx.x % 32, E = static_cast<unsigned>(a.E);
  const T* logits = static_cast<const T*>(a.logits) + r * a.logits_stride;
  float* weights = a.weights + r * a.k;
  int64_t* experts = a.experts + r * a.k;

  float held[kHeldExperts];
  if constexpr (kHeld) {
#pragma unroll
    for (unsigned j = 0; j < kHeldExperts; ++j)
      if (lane + 32 * j < E) held[j] = to_float(logits[lane + 32 * j]);
  }
  const auto each = [&](auto body) {  // this lane's experts and their logits
    if constexpr (kHeld) {
#pragma unroll
      for (unsigned j = 0; j < kHeldExperts; ++j)
        if (lane + 32 * j < E) body(lane + 32 * j, held[j]);
    } else {
      for (unsigned e = lane; e < E; e += 32) body(e, to_float(logits[e]));
    }
  };

  bool number = true;
  each([&](unsigned, float logit) { number = number && logit == logit; });
  float largest = 0, sum = 0;
  uint64_t last = UINT64_MAX;  // before every other
  for (int64_t j = 0; j < a.k; ++j) {
    uint64_t next = 0;  // after every other
    each([&](unsigned e, float logit) {
      const uint64_t c = choice(key_of(logit), e);
      if (c < last && c > next) next = c;
    });
    last = largest_of_warp(next);
    const float logit = logit_of(static_cast<unsigned>(last >> 32));
    if (j == 0) {
      largest = logit;
      if (!__all_sync(0xffffffffu, number) || isinf(largest)) {  // the softmax is not defined
        for (int64_t i = lane; i < a.k; i += 32) {
          weights[i] = NAN;
          experts[i] = i;
        }
        return;
      }
    }
    if (a.renormalize) sum += expf(logit - largest);
    if (lane == 0) {
      weights[j] = logit;
      experts[j] = ~static_cast<unsigned>(last);
    }
  }
  if (!a.renormalize) {
    each([&](unsigned, float logit) { sum += expf(logit - largest); });
    sum = warp_reduce<Add>(sum);
  }
  __syncwarp();  // what lane 0 wrote
  for (int64_t j = lane; j < a.k; j += 32) weights[j] = expf(weights[j] - largest) / sum;
}

}  // namespace

Status moe_route(const MoeRouteArgs& a, Stream stream) {
  if (a.R == 0) return {};
  const int64_t blocks = (a.R + kRouteWarps - 1) / kRouteWarps;
  if (blocks > 0x7fffffff || a.E > 0x7fffffff) return {"moe_route: more than 2^31 - 1 blocks or experts"};
  return with_type(a.dtype, [&](auto number) {
    using T = typename decltype(number)::type;
    const auto kernel = a.E <= 32 * kHeldExperts ? moe_route_kernel<T, true> : moe_route_kernel<T, false>;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kRouteWarps * 32), 0, stream, gpu().sm >= 90, a);
  });
}

}  // namespace nybble::cuda
