#include "ops/anneal.h"

#include <cmath>
#include <limits>

namespace nybble::cpu {
namespace {

struct SplitMix64 {
  uint64_t state;

  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

// x of 32 bits to [0, count).
int64_t below(uint64_t x, int64_t count) { return int64_t((x & 0xffffffffu) * uint64_t(count) >> 32); }

}  // namespace

Status anneal_knapsack(const AnnealArgs& a) {
  SplitMix64 random{a.seed};
  int64_t cost = 0;
  double loss = 0, best = std::numeric_limits<double>::infinity();
  for (int64_t s = 0; s < a.S; ++s) {
    a.state[s] = a.choice[s] = 0;
    cost += a.cost[a.first[s]];
    loss += a.loss[a.first[s]];
  }
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
      } else if (changed > a.budget ||
                 (rise >= 0 && double(random.next() >> 11) * 0x1p-53 >= std::exp(-rise / a.temperature[level]))) {
        continue;
      }
      a.state[slot] = option;
      cost = changed;
      loss += rise;
      if (cost <= a.budget && loss < best) {
        best = loss;
        for (int64_t s = 0; s < a.S; ++s) a.choice[s] = a.state[s];
      }
    }
  if (std::isinf(best))
    for (int64_t s = 0; s < a.S; ++s) a.choice[s] = a.state[s];
  return {};
}

}  // namespace nybble::cpu
