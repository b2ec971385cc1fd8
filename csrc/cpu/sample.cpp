#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/scratch.h"
#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu {
namespace {

struct Candidate {
  float weight;  // probability times a constant: the largest has 1
  int32_t id;
};
bool before(const Candidate& a, const Candidate& b) { return a.weight != b.weight ? a.weight > b.weight : a.id < b.id; }

// Candidates in order, sorted only as far as somebody looks.
struct Sorted {
  Candidate* all;
  int64_t count, ready = 0;

  const Candidate& at(int64_t i) {
    while (i >= ready) {
      Candidate *from = all + ready, *end = all + count;
      Candidate* to = from + std::min(count - ready, std::max<int64_t>(64, 3 * ready));
      if (to != end) std::nth_element(from, to, end, before);
      std::sort(from, to, before);
      ready = to - all;
    }
    return all[i];
  }
};

// The lowest id of the largest logit; -1 where there is a nan, or -inf only.
int64_t greedy(const float* x, int64_t V) {
  int64_t best = -1;
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < V; ++i) {
    if (x[i] != x[i]) return -1;
    if (x[i] > largest) {
      largest = x[i];
      best = i;
    }
  }
  return best;
}

// weight = exp((x - largest) / temperature), with equal shares for infinite logits.
void weigh(const float* x, int64_t V, float largest, float temperature, Candidate* to) {
  using generic::Vec;
  for (int64_t i = 0; i < V; i += Vec::width) {
    const int n = int(std::min<int64_t>(Vec::width, V - i));
    float w[Vec::width];
    if (std::isinf(largest)) {
      for (int j = 0; j < n; ++j) w[j] = x[i + j] == largest ? 1.0f : 0.0f;
    } else {
      exp((Vec::load_n(x + i, n) - Vec::set(largest)) / Vec::set(temperature)).store(w);
    }
    for (int j = 0; j < n; ++j) to[i + j] = {w[j], int32_t(i + j)};
  }
}

double mass(const Candidate* c, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += c[i].weight;
  return sum;
}

int64_t sample_row(const SampleArgs& a, int64_t b) {
  const float* x = a.logits + b * a.stride;
  const int64_t best = greedy(x, a.V);
  if (best < 0 || a.temperature[b] == 0.0f) return best;

  Candidate* all = static_cast<Candidate*>(a.scratch) + b * a.V;
  weigh(x, a.V, x[best], a.temperature[b], all);
  const double total = mass(all, a.V);

  // Each filter keeps a prefix of the sorted candidates, so the cheap ones go first; top-p's mass is of all candidates.
  int64_t count = a.V;
  if (a.min_p[b] > 0) {
    const float least = std::min(a.min_p[b], 1.0f);
    count = std::partition(all, all + count, [least](const Candidate& c) { return c.weight >= least; }) - all;
  }
  if (a.top_k[b] > 0 && a.top_k[b] < count) {
    std::nth_element(all, all + a.top_k[b], all + count, before);
    count = a.top_k[b];
  }
  Sorted sorted{all, count};
  if (a.top_p[b] < 1.0f) {
    const double wanted = double(a.top_p[b]) * total;
    double sum = sorted.at(0).weight;
    int64_t kept = 1;
    while (kept < count && sum < wanted) sum += sorted.at(kept++).weight;
    count = kept;
  }

  const double target = double(a.random[b]) * mass(all, count);
  double sum = 0;
  int64_t token = best;
  for (int64_t i = 0; i < count; ++i) {
    const Candidate& c = sorted.at(i);
    if (c.weight == 0) break;  // rounding may leave the sum just short of the target: the last one that has a chance
    token = c.id;
    sum += c.weight;
    if (sum > target) break;
  }
  return token;
}

}  // namespace

int64_t sample_scratch_bytes(const SampleArgs& a) { return a.B * a.V * int64_t{sizeof(Candidate)}; }

Status sample(const SampleArgs& a) {
  if (a.V > std::numeric_limits<int32_t>::max()) return {"sample: more than 2^31 - 1 logits in a row"};
  parallel_for(a.B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) a.token[b] = sample_row(a, b);
  });
  return {};
}

Status repetition_penalty(const RepetitionPenaltyArgs& a) {
  // One bit a token, set once it was penalised. Rows go one after another: there is little to do in each.
  const int64_t bytes = (a.V + 7) / 8;
  uint8_t* seen = static_cast<uint8_t*>(thread_scratch(Slot::penalty, bytes));
  if (!seen) return {"repetition_penalty: out of memory"};
  for (int64_t b = 0; b < a.B; ++b) {
    std::memset(seen, 0, size_t(bytes));
    float* x = a.logits + b * a.stride;
    for (int64_t i = 0; i < a.L; ++i) {
      const int64_t t = a.tokens[b * a.L + i];
      if (t < 0 || t >= a.V || (seen[t / 8] >> (t % 8) & 1)) continue;
      seen[t / 8] = uint8_t(seen[t / 8] | 1 << (t % 8));
      x[t] = x[t] < 0 ? x[t] * a.penalty[b] : x[t] / a.penalty[b];
    }
  }
  return {};
}

}  // namespace nybble::cpu
