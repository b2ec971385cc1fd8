// The knapsack by annealing (ops/anneal.h): one proposal after another, so one warp. Its lanes all do the same, but for
// what can be shared out: checking the tables, copying them to shared memory where they fit, keeping the best state.
//
// The answer is the CPU's. The exponential may differ from the CPU's in its last bit, which a random number of 53 bits
// meets once in 2^53.
#include "cuda/common/launch.cuh"
#include "ops/anneal.h"

namespace nybble::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;

struct SplitMix64 {
  uint64_t state;

  __device__ uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

// x of 32 bits to [0, count).
__device__ int64_t below(uint64_t x, int64_t count) {
  return static_cast<int64_t>((x & 0xffffffffu) * static_cast<uint64_t>(count) >> 32);
}

// What the CPU refuses, asked here by all lanes together.
__device__ bool sound(const AnnealArgs& a) {
  const int lane = threadIdx.x;
  const int64_t largest = INT64_MAX / a.S;
  bool good = a.first[0] == 0 && a.first[a.S] == a.O;
  for (int64_t s = lane; s < a.S; s += 32) good = good && a.first[s] < a.first[s + 1];
  for (int64_t o = lane; o < a.O; o += 32) good = good && a.cost[o] >= 0 && a.cost[o] <= largest && isfinite(a.loss[o]);
  for (int64_t l = lane; l < a.L; l += 32) good = good && a.temperature[l] > 0;
  return __all_sync(kAll, good);
}

__device__ void copy(int64_t* to, const int64_t* from, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += 32) to[i] = from[i];
  __syncwarp();
}

__global__ void __launch_bounds__(32) anneal_kernel(AnnealArgs a,  // as ops/anneal.h says
                                                    bool fits) {   // the tables fit shared memory
  extern __shared__ int64_t shared[];
  const int lane = threadIdx.x;
  if (!sound(a)) {
    for (int64_t s = lane; s < a.S; s += 32) a.choice[s] = -1;
    return;
  }
  if (fits) {
    int64_t* const cost = shared;
    int64_t* const loss = cost + a.O;
    int64_t* const first = loss + a.O;
    copy(cost, a.cost, a.O);
    copy(loss, reinterpret_cast<const int64_t*>(a.loss), a.O);
    copy(first, a.first, a.S + 1);
    a.cost = cost;
    a.loss = reinterpret_cast<const double*>(loss);
    a.first = first;
    a.state = first + a.S + 1;
  }
  SplitMix64 random{a.seed};
  int64_t cost = 0;
  double loss = 0, best = INFINITY;
  for (int64_t s = 0; s < a.S; ++s) {
    cost += a.cost[a.first[s]];
    loss += a.loss[a.first[s]];
  }
  for (int64_t s = lane; s < a.S; s += 32) a.state[s] = a.choice[s] = 0;
  __syncwarp();
  if (cost <= a.budget) best = loss;
  for (int64_t level = 0; level < a.L; ++level)
    for (int64_t step = 0; step < a.steps; ++step) {
      const uint64_t draw = random.next();
      const int64_t slot = below(draw >> 32, a.S), from = a.first[slot];
      const int64_t option = below(draw, a.first[slot + 1] - from);
      const int64_t now = from + a.state[slot], then = from + option;
      const int64_t changed = cost - a.cost[now] + a.cost[then];
      const double rise = a.loss[then] - a.loss[now];
      if (cost > a.budget) {
        if (changed >= cost) continue;
      } else if (changed > a.budget || (rise >= 0 && static_cast<double>(random.next() >> 11) * 0x1p-53 >=
                                                         exp(-rise / a.temperature[level]))) {
        continue;
      }
      __syncwarp();  // every lane has read the state
      if (lane == 0) a.state[slot] = option;
      __syncwarp();
      cost = changed;
      loss += rise;
      if (cost <= a.budget && loss < best) {
        best = loss;
        copy(a.choice, a.state, a.S);
      }
    }
  if (isinf(best)) copy(a.choice, a.state, a.S);
}

}  // namespace

Status anneal_knapsack(const AnnealArgs& a, Stream stream) {
  if (a.S == 0) return {};
  const int64_t bytes = (2 * a.O + 2 * a.S + 1) * int64_t{sizeof(int64_t)};
  const bool fits = bytes <= gpu().shared_memory;
  if (fits && bytes > 48 << 10) {
    const Status raised = status(
        cudaFuncSetAttribute(anneal_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    if (!raised.ok()) return raised;
  }
  anneal_kernel<<<1, 32, fits ? static_cast<size_t>(bytes) : 0, native(stream)>>>(a, fits);
  return launched();
}

}  // namespace nybble::cuda
