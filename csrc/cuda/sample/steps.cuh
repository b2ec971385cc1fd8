// The steps of sample_chain on the candidates of a row. The same in all threads of the team.
#pragma once
#include "cuda/sample/candidates.cuh"
#include "ops/sample.h"

namespace nybble::cuda {

// Running sums that reach x, of masses: never 0, so that one candidate stays.
__device__ inline u64 goal(double x) { return max(static_cast<u64>(ceil(ldexp(x, kMassBits))), u64{1}); }
// That exceed the share x of `all`.
__device__ inline u64 beyond(double x, u64 all) { return static_cast<u64>(x * static_cast<double>(all)) + 1; }

__noinline__ __device__ unsigned reached_by_mass(Candidates& c, u64 goal) {
  return c.team.first_reaching(c.n, [&](unsigned i) { return mass(c.p[i]); }, goal);
}

// A probability that the candidates up to the goal have or exceed, and not many others; 0 if that cannot be said.
__noinline__ __device__ float reached_from(Candidates& c, const Goal& goal) {
  Bins& bins = c.shared.bins;
  bins.clear();
  const unsigned address = shared_address(&bins), one = __float_as_uint(1.0f);
  constexpr int kShift = 18;  // 32 bins from a half to 1
  c.each([&](unsigned i) {
    const float q = c.p[i];
    const unsigned below = one - min(__float_as_uint(q), one);
    if (q > 0) Bins::add(address, min(below >> kShift, kBins - 1), mass(q), true);
  });
  bins.sum_up(c.team);
  const Bin bin = bins.find(c.team, [&] { return goal; });
  c.team.sync();
  return bin.number >= kBins - 1 ? 0.0f : __uint_as_float(one - ((bin.number + 1) << kShift) + 1);
}

// The k-th largest probability, from its highest bits on, as many as there are bins for; a number below 2 has 30.
__noinline__ __device__ float kth_largest(Candidates& c, unsigned k) {
  static_assert(30 % kBinBits == 0);
  Bins& bins = c.shared.bins;
  unsigned prefix = 0;
  for (int shift = 30 - kBinBits; shift >= 0; shift -= kBinBits) {
    bins.clear();
    const unsigned address = shared_address(&bins);
    c.each([&](unsigned i) {
      const unsigned bits = __float_as_uint(c.p[i]) >> shift;
      if (bits >> kBinBits == prefix) Bins::add(address, ~bits & (kBins - 1), 0, true);
    });
    bins.sum_up(c.team);
    const Bin bin = bins.find(c.team, [&] { return Goal{kNoMass, k}; });
    prefix = prefix << kBinBits | (kBins - 1 - bin.number);
    k -= bin.before.count;
    c.team.sync();
  }
  return __uint_as_float(prefix);
}

// Of those as probable as the k-th: the highest ids among the first k candidates that are at least as probable.
__device__ inline void top_k(Candidates& c, float value) {
  if (value < 1.0f || value >= static_cast<float>(c.n)) return;
  const auto k = static_cast<unsigned>(value);
  const float from = reached_from(c, {kNoMass, k});
  float last;
  if (from > 0) {
    const unsigned count = c.list_from(from);
    const u64* sorted = c.sort_keys(count, 0);
    last = probability(sorted[k - 1]);
    if (count == k || probability(sorted[k]) < last) {
      c.take(sorted, k);
      c.team.sync();
      return c.keep(k);
    }
  } else {
    last = kth_largest(c, k);
  }
  // Some of the equal ones stay.
  Shared& s = c.shared;
  c.team.sync();
  if (threadIdx.x == 0) s.count = 0;
  c.team.select(
      0, c.n, [&](unsigned i) { return c.p[i] >= last; },
      [&](unsigned seen, unsigned i) {
        if (c.p[i] > last || seen < k) c.keys[atomicAdd(in_block(&s.count, 0), 1u)] = c.packed(i);
      });
  c.team.sync();
  c.take(c.sort_keys(*in_block(&s.count, 0), 0), k);
  c.team.sync();
  c.keep(k);
}

__device__ inline void top_p(Candidates& c, float p) {
  if (p >= 1.0f) return;
  const float from = reached_from(c, {goal(p), kNone});
  if (from > kNoise) {
    const unsigned count = c.list_from(from);
    c.take(c.sort_keys(count, 0), count);
    c.n = count;
    c.team.sync();
  } else {
    c.sort();
  }
  c.keep(min(reached_by_mass(c, goal(p)) + 1, c.n));
}

// Keeps what is at least as probable as `least`; a hole is filled with the last candidate that stays.
__device__ inline void drop_below(Candidates& c, float least) {
  const unsigned count = c.count_from(least);
  auto *holes = reinterpret_cast<unsigned*>(c.keys), *fillers = reinterpret_cast<unsigned*>(c.aux);
  const auto stays = [&](unsigned i) { return c.p[i] >= least; };
  const auto into = [](unsigned* list) { return [=](unsigned at, unsigned i) { list[at] = i; }; };
  const unsigned moved = c.team.select(0, count, [&](unsigned i) { return !stays(i); }, into(holes));
  c.team.select(count, c.n, stays, into(fillers));
  c.team.sync();
  for (unsigned i = c.team.thread(); i < moved; i += c.team.threads()) {
    const unsigned hole = holes[i], filler = fillers[moved - 1 - i];
    c.p[hole] = c.p[filler];
    c.id[hole] = c.id[filler];
  }
  if (moved > 0) c.by_id = false;
  c.team.sync();
  c.keep(count);
}

__device__ inline void min_p(Candidates& c, float p) { drop_below(c, fminf(p, 1.0f) * c.largest()); }

__device__ inline void top_a(Candidates& c, float a) {
  const float most = c.largest();
  drop_below(c, fminf(a * most * most, most));
}

__device__ inline void tail_free(Candidates& c, float z) {
  if (z >= 1.0f || c.n < 3) return;
  const unsigned sorted = c.sort(), bends = sorted > 2 ? sorted - 2 : 0;
  const auto bend = [&](unsigned i) {
    const auto at = [&](unsigned j) { return static_cast<long long>(mass(c.p[j])); };
    return static_cast<u64>(llabs(at(i) - 2 * at(i + 1) + at(i + 2)));
  };
  u64 all = 0;
  for (unsigned i = c.team.thread(); i < bends; i += c.team.threads()) all += bend(i);
  all = c.team.reduce(all, Plus{});
  c.keep(c.team.first_reaching(bends, bend, beyond(z, all)) + 1);
}

// `below`: the rule that existing seeds and settings of EXL2 programs mean. It adds the probability to its logarithm,
// and drops the candidate that reaches p too.
__device__ inline void typical(Candidates& c, float p, bool below) {
  if (p >= 1.0f) return;
  const auto height = [&](unsigned i) {
    const double q = c.p[i];
    return below ? q + log(q + 1e-10) : log(q);
  };
  const double mean = c.sum(57, [&](unsigned i) { return c.p[i] < kNoise ? 0.0 : c.p[i] * height(i); });
  const unsigned count = c.team.select(
      0, c.n, [&](unsigned i) { return c.p[i] >= kNoise; },
      [&](unsigned at, unsigned i) {
        const auto away = fabsf(static_cast<float>(static_cast<float>(height(i)) - mean));
        c.keys[at] = static_cast<u64>(ordered(-away)) << 32 | c.id[i];
        c.of_id[c.id[i]] = c.p[i];
      });
  c.team.sync();
  if (count == 0) return;
  const u64* sorted = c.sort_keys(count, 0);
  c.n = count;
  c.by_id = false;
  c.each([&](unsigned i) {
    c.id[i] = static_cast<unsigned>(sorted[i]);
    c.p[i] = c.of_id[c.id[i]];
  });
  c.team.sync();
  const unsigned reached = reached_by_mass(c, goal(p));
  c.keep(below ? max(reached, 1u) : min(reached + 1, count));
}

__device__ inline void surprise(Candidates& c, float bits) {
  if (isinf(bits)) return;
  c.sort();
  c.keep(max(c.count_from(fmaxf(exp2f(-bits), kNoise)), 1u));
}

__device__ inline void temper(Candidates& c, double t) {
  if (t == 1.0) return;
  const double most = c.largest();  // as a share of it, no power of all of them is 0
  c.each([&](unsigned i) { c.p[i] = c.p[i] > 0 ? static_cast<float>(pow(c.p[i] / most, 1.0 / t)) : 0.0f; });
  c.team.sync();
  c.renormalise();
}

__device__ inline void dynamic_temper(Candidates& c, float low, float high, float exponent) {
  if (c.n < 2) return;
  const double entropy = c.sum(57, [&](unsigned i) {
    const double q = c.p[i];
    return q > 0 ? -q * log(q) : 0.0;
  });
  const double share = fmin(fmax(entropy, 0.0) / log(static_cast<double>(c.n)), 1.0);
  temper(c, low + (static_cast<double>(high) - low) * pow(share, static_cast<double>(exponent)));
}

__device__ inline void xtc(Candidates& c, float chance, float threshold, const uint8_t* removable) {
  const auto exceeds = [&](unsigned i) { return c.p[i] >= threshold && (!removable || removable[c.id[i]]); };
  // The least probable, and of those the last.
  u64 spared = ~u64{0};
  c.each([&](unsigned i) {
    if (exceeds(i)) spared = min(spared, static_cast<u64>(__float_as_uint(c.p[i])) << 32 | ~i);
  });
  spared = c.team.reduce(spared, Least{});
  const auto loses = [&](unsigned i) { return i != ~static_cast<unsigned>(spared) && exceeds(i); };
  const double lost = c.sum(kMassBits, [&](unsigned i) { return loses(i) ? c.p[i] : 0.0; });
  const double others = c.sum(kMassBits, [&](unsigned i) { return loses(i) ? 0.0 : c.p[i]; });
  if (spared == ~u64{0} || others == 0) return;
  const double down = 1.0 - chance, up = 1.0 + chance * lost / others;
  c.each([&](unsigned i) { c.p[i] = static_cast<float>(c.p[i] * (loses(i) ? down : up)); });
  c.team.sync();
}

}  // namespace nybble::cuda
