// Each token of a row once: a penalty and a presence by the strength of its last place, a frequency by the sum of the
// strengths of its places. A block, or for many tokens a cluster of them, a row; its n threads take places t, t + n,
// ... counted from the last token.
//
//   last[V]       the place of each token nearest to the end; only tokens that occur are ever touched
//   count[L]      at that place: how many places the token has,
//   fallen[L]     and how far beyond full strength they are in all. Whole numbers: the order of adding changes nothing.
#include "cuda/common/cluster.cuh"
#include "ops/sample.h"

namespace nybble::cuda {
namespace {

constexpr int kPenaltyThreads = 1024;
using u64 = unsigned long long;

struct Scratch {
  u64* fallen;      // [B, L]
  unsigned* count;  // [B, L]
  unsigned* last;   // [B, V]
};

// a: as in ops/sample.h, all on the device; scratch: the parts of a.scratch.
__global__ void __launch_bounds__(kPenaltyThreads) repetition_penalty_kernel(RepetitionPenaltyArgs a, Scratch scratch) {
  wait_for_previous();
  let_next_begin();
  const unsigned blocks = cluster_blocks(), thread = cluster_rank() * kPenaltyThreads + threadIdx.x;
  const int64_t b = blockIdx.x / blocks;
  const int64_t full = a.sustain < 0 ? a.L : min(a.sustain, a.L);
  const int64_t reach = full + min(a.decay, a.L - full);
  const int64_t* tokens = a.tokens + b * a.L + a.L - 1;
  u64* fallen = scratch.fallen + b * a.L;
  unsigned* count = scratch.count + b * a.L;
  unsigned* last = scratch.last + b * a.V;
  const auto each_place = [&](auto visit) {
#pragma unroll 4
    for (int64_t k = thread; k < reach; k += blocks * kPenaltyThreads) {
      const int64_t t = __ldg(tokens - k);
      if (t >= 0 && t < a.V) visit(k, t);
    }
    if (blocks > 1)
      cluster_sync();
    else
      __syncthreads();
  };
  each_place([&](int64_t k, int64_t t) {
    if (a.frequency) fallen[k] = count[k] = 0;
    last[t] = static_cast<unsigned>(k);  // of a token's places any one
  });
  each_place([&](int64_t k, int64_t t) {
    if (last[t] > k) atomicMin(&last[t], static_cast<unsigned>(k));
  });
  if (a.frequency) {
    each_place([&](int64_t k, int64_t t) {
      const unsigned home = last[t];
      atomicAdd(&count[home], 1u);
      if (k > full) atomicAdd(&fallen[home], static_cast<u64>(k - full));
    });
  }
  const double penalty = a.penalty[b], frequency = a.frequency ? a.frequency[b] : 0.0;
  const double presence = a.presence ? a.presence[b] : 0.0;
  float* x = a.logits + b * a.stride;
  each_place([&](int64_t k, int64_t t) {
    if (last[t] != k) return;
    const double strength = k <= full ? 1.0 : 1.0 - static_cast<double>(k - full) / static_cast<double>(a.decay);
    const auto factor = static_cast<float>(1.0 + strength * (penalty - 1.0));
    float y = x[t];
    y = y < 0 ? y * factor : y / factor;
    y -= static_cast<float>(strength * presence);
    if (a.frequency) {
      double total = count[k];
      if (fallen[k] > 0) total -= static_cast<double>(fallen[k]) / static_cast<double>(a.decay);
      y -= static_cast<float>(total * frequency);
    }
    x[t] = y;
  });
}

}  // namespace

int64_t repetition_penalty_scratch(const RepetitionPenaltyArgs& a) {
  return a.B * (a.L * int64_t{sizeof(u64) + sizeof(unsigned)} + a.V * int64_t{sizeof(unsigned)});
}

Status repetition_penalty(const RepetitionPenaltyArgs& a, Stream stream) {
  if (a.B * a.V * a.L == 0) return {};
  if (a.B > 0x0fffffff || a.L > 0x7fffffff) return {"more than 2^28 - 1 rows, or 2^31 - 1 tokens"};
  auto* fallen = static_cast<u64*>(a.scratch);
  auto* count = reinterpret_cast<unsigned*>(fallen + a.B * a.L);
  const Scratch scratch{fallen, count, count + a.B * a.L};
  unsigned blocks = 1;
  if (gpu().sm >= 90)
    while (blocks < 8 && blocks * kPenaltyThreads < a.L && 2 * blocks * a.B <= gpu().processors) blocks *= 2;
  return launch_clusters(repetition_penalty_kernel, dim3(static_cast<unsigned>(a.B) * blocks), static_cast<int>(blocks),
                         dim3(kPenaltyThreads), 0, stream, gpu().sm >= 90, a, scratch);
}

}  // namespace nybble::cuda
