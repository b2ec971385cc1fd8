// One token a row through a chain of steps. Each step is one function on a Row: n candidates, in an order.
#include <atomic>

#include "cpu/isa/candidates.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops/sample.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

// What is less probable than this, a sort leaves behind and unsorted: no draw tells it from 0.
constexpr float noise = 1e-8f;

struct Keyed {
  float key, p;
  int32_t id;
};
// By key and then by id, so that no result depends on how a sort is written.
bool before(const Keyed& a, const Keyed& b) { return a.key != b.key ? a.key > b.key : a.id > b.id; }

struct Row {
  float* p;            // [n] probabilities
  int32_t* id;         // [n] whose they are
  Keyed* keyed;        // [V] work
  float *most, *work;  // [blocks of V] work
  int64_t n;

  double mass() const {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += p[i];
    return sum;
  }
  float largest() const { return *std::max_element(p, p + n); }
  void renormalise() {
    const float inverse = float(1.0 / mass());
    for (int64_t i = 0; i < n; ++i) p[i] *= inverse;
  }
  void keep(int64_t count) {  // the first ones
    n = count;
    renormalise();
  }
  void take(int64_t count) {  // the first of keyed[]
    for (int64_t i = 0; i < count; ++i) {
      p[i] = keyed[i].p;
      id[i] = keyed[i].id;
    }
    n = count;
  }
};

// Sorts by probability; how many are more than noise.
int64_t sort(Row& r) {
  int64_t sorted = 0;
  for (int64_t i = 0; i < r.n; ++i) sorted += r.p[i] >= noise;
  int64_t front = 0, back = sorted;
  for (int64_t i = 0; i < r.n; ++i) r.keyed[r.p[i] >= noise ? front++ : back++] = {r.p[i], r.p[i], r.id[i]};
  std::sort(r.keyed, r.keyed + sorted, before);
  r.take(r.n);
  return sorted;
}

// Of those as probable as the k-th: the highest ids among the first k candidates that are at least as probable.
void top_k(Row& r, float value) {
  if (value < 1.0f || value >= float(r.n)) return;
  const int64_t k = int64_t(value), blocks = block_count(r.n);
  block_maxima(r.p, r.n, r.most);
  const float bound = reached_by(r.most, blocks, k, r.work);
  int64_t found = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (r.most[b] < bound) continue;
    for (int64_t i = b * block_size; i < smaller((b + 1) * block_size, r.n); ++i) {
      if (r.p[i] >= bound) r.keyed[found++] = {r.p[i], r.p[i], r.id[i]};
    }
  }
  // All that matters is in keyed[] now: p[] is free as work.
  for (int64_t i = 0; i < found; ++i) r.p[i] = r.keyed[i].p;
  std::nth_element(r.p, r.p + k - 1, r.p + found, std::greater<float>());
  const float last = r.p[k - 1];
  int64_t kept = 0, seen = 0;
  for (int64_t i = 0; i < found; ++i) {
    const Keyed c = r.keyed[i];
    if (c.p < last) continue;
    if (c.p > last || seen < k) r.keyed[kept++] = c;
    ++seen;
  }
  std::sort(r.keyed, r.keyed + kept, before);
  r.take(k);
  r.renormalise();
}

void top_p(Row& r, float p) {
  if (p >= 1.0f) return;
  sort(r);
  double sum = r.p[0];
  int64_t count = 1;
  while (count < r.n && sum < double(p)) sum += r.p[count++];
  r.keep(count);
}

// Candidates enter a heap one after another; while its mass is over p the least probable leaves. What is left sums to p
// at the most (or is one candidate), and is not always a prefix of the sorted candidates: a small one that comes late
// may find the room that a larger one left. Existing seeds and settings of EXL2 programs mean this rule.
void top_p_stream(Row& r, float p) {
  if (p >= 1.0f) return;
  constexpr float least = 1e-6f;
  Keyed* heap = r.keyed;
  int64_t count = 0;
  double sum = 0;
  for (int64_t i = 0; i < r.n; ++i) {
    if (r.p[i] < least) continue;
    heap[count++] = {r.p[i], r.p[i], r.id[i]};
    std::push_heap(heap, heap + count, before);
    sum += r.p[i];
    while (sum > double(p) && count > 1) {
      std::pop_heap(heap, heap + count, before);
      sum -= heap[--count].p;
    }
  }
  if (count == 0) return;
  std::sort_heap(heap, heap + count, before);
  r.take(count);
  r.renormalise();
}

// Keeps what is at least as probable as `least`; a hole is filled with the last candidate that stays.
void drop_below(Row& r, float least) {
  int64_t i = 0, j = r.n - 1;
  while (true) {
    while (i <= j && r.p[i] >= least) ++i;
    while (j > i && r.p[j] < least) --j;
    if (i >= j) break;
    r.p[i] = r.p[j];
    r.id[i++] = r.id[j--];
  }
  r.keep(i);
}

void min_p(Row& r, float p) { drop_below(r, std::min(p, 1.0f) * r.largest()); }

void top_a(Row& r, float a) {
  const float most = r.largest();
  drop_below(r, std::min(a * most * most, most));
}

void tail_free(Row& r, float z) {
  if (z >= 1.0f || r.n < 3) return;
  const int64_t bends = larger(sort(r) - 2, 0);
  const auto bend = [&](int64_t i) { return std::fabs(double(r.p[i]) - 2.0 * r.p[i + 1] + r.p[i + 2]); };
  double total = 0, sum = 0;
  for (int64_t i = 0; i < bends; ++i) total += bend(i);
  int64_t within = 0;
  while (within < bends && (sum += bend(within)) <= double(z) * total) ++within;
  r.keep(within + 1);
}

// `below`: the rule that existing seeds and settings of EXL2 programs mean. It adds the probability to its logarithm,
// and drops the candidate that reaches p too.
void typical(Row& r, float p, bool below) {
  if (p >= 1.0f) return;
  const auto height = [below](double q) { return below ? q + std::log(q + 1e-10) : std::log(q); };
  int64_t count = 0;
  double mean = 0;
  for (int64_t i = 0; i < r.n; ++i) {
    if (r.p[i] < noise) continue;
    r.keyed[count] = {float(height(r.p[i])), r.p[i], r.id[i]};
    mean += double(r.p[i]) * height(r.p[i]);
    ++count;
  }
  if (count == 0) return;
  for (int64_t i = 0; i < count; ++i) r.keyed[i].key = -std::fabs(float(r.keyed[i].key - mean));
  std::sort(r.keyed, r.keyed + count, before);
  double sum = r.keyed[0].p;
  int64_t kept = 1;
  if (below) {
    while (kept < count && (sum += r.keyed[kept].p) < double(p)) ++kept;
  } else {
    while (kept < count && sum < double(p)) sum += r.keyed[kept++].p;
  }
  r.take(kept);
  r.renormalise();
}

void surprise(Row& r, float bits) {
  if (std::isinf(bits)) return;
  const int64_t sorted = sort(r);
  const float least = std::exp2(-bits);
  int64_t count = 1;
  while (count < sorted && r.p[count] >= least) ++count;
  r.keep(count);
}

void temper(Row& r, double t) {
  if (t == 1.0) return;
  const double most = r.largest();  // as a share of it, no power of all of them is 0
  for (int64_t i = 0; i < r.n; ++i) r.p[i] = r.p[i] > 0 ? float(std::pow(r.p[i] / most, 1.0 / t)) : 0.0f;
  r.renormalise();
}

void dynamic_temper(Row& r, const float* v) {
  if (r.n < 2) return;
  double entropy = 0;
  for (int64_t i = 0; i < r.n; ++i) entropy -= r.p[i] > 0 ? r.p[i] * std::log(double(r.p[i])) : 0.0;
  const double share = std::min(std::max(entropy, 0.0) / std::log(double(r.n)), 1.0);
  temper(r, v[0] + (double(v[1]) - v[0]) * std::pow(share, double(v[2])));
}

void xtc(Row& r, float chance, float threshold, const uint8_t* removable) {
  const auto exceeds = [&](int64_t i) { return r.p[i] >= threshold && (!removable || removable[r.id[i]]); };
  int64_t spared = -1;
  for (int64_t i = 0; i < r.n; ++i) {
    if (exceeds(i) && (spared < 0 || r.p[i] <= r.p[spared])) spared = i;
  }
  double lost = 0, others = 0;
  for (int64_t i = 0; i < r.n; ++i) (i != spared && exceeds(i) ? lost : others) += r.p[i];
  if (spared < 0 || others == 0) return;
  const double down = 1.0 - chance, up = 1.0 + chance * lost / others;
  for (int64_t i = 0; i < r.n; ++i) r.p[i] = float(r.p[i] * (i != spared && exceeds(i) ? down : up));
}

void apply(Row& r, SampleStep step, const float* v, const uint8_t* removable) {
  switch (step) {
    case SampleStep::top_k:
      return top_k(r, v[0]);
    case SampleStep::top_p:
      return top_p(r, v[0]);
    case SampleStep::top_p_stream:
      return top_p_stream(r, v[0]);
    case SampleStep::min_p:
      return min_p(r, v[0]);
    case SampleStep::top_a:
      return top_a(r, v[0]);
    case SampleStep::tail_free:
      return tail_free(r, v[0]);
    case SampleStep::typical:
      return typical(r, v[0], false);
    case SampleStep::typical_below:
      return typical(r, v[0], true);
    case SampleStep::surprise:
      return surprise(r, v[0]);
    case SampleStep::temper:
      return temper(r, v[0]);
    case SampleStep::dynamic_temper:
      return dynamic_temper(r, v);
    case SampleStep::xtc:
      return xtc(r, v[0], v[1], removable);
    case SampleStep::sort:
      sort(r);
      return;
    case SampleStep::count:
      return;  // refused at the border
  }
}

// The candidates at the start; false where there are none.
bool start(const SampleChainArgs& a, int64_t b, Row& r) {
  const float* x = a.logits + b * a.stride;
  if (a.allowed) {
    const uint8_t* allowed = a.allowed + b * a.V;
    for (int64_t i = 0; i < a.V; ++i) r.p[i] = allowed[i] ? x[i] : -infinity;
    x = r.p;
  }
  const int64_t blocks = block_count(a.V);
  if (!block_maxima(x, a.V, r.most)) return false;
  const float largest = *std::max_element(r.most, r.most + blocks);
  if (largest == -infinity) return false;
  if (a.temperature[b] == 0.0f) {
    r.id[0] = int32_t(first_at_least(x, r.most, largest));
    r.p[0] = 1.0f;
    r.n = 1;
    return true;
  }
  const Softmax softmax(largest, a.temperature[b]);
  double sum = 0;
  for (int64_t i = 0; i < a.V; i += block_size) sum += softmax(x + i, smaller(block_size, a.V - i), r.p + i);
  const float inverse = float(1.0 / sum);
  for (int64_t i = 0; i < a.V; ++i) {
    r.p[i] *= inverse;
    r.id[i] = int32_t(i);
  }
  r.n = a.V;
  return true;
}

// The place of the drawn candidate. Rounding may leave the sum just short of the target: the last that has a chance.
int64_t draw(const Row& r, float random) {
  const double target = double(random) * r.mass();
  double sum = 0;
  int64_t chosen = 0;
  for (int64_t i = 0; i < r.n; ++i) {
    if (r.p[i] == 0) continue;
    chosen = i;
    sum += r.p[i];
    if (sum > target) break;
  }
  return chosen;
}

void sample_row(const SampleChainArgs& a, int64_t b, Row& r) {
  int64_t* top_tokens = a.top_tokens + b * a.top;
  float* top_probabilities = a.top_probabilities + b * a.top;
  std::fill(top_tokens, top_tokens + a.top, -1);
  std::fill(top_probabilities, top_probabilities + a.top, 0.0f);
  a.token[b] = -1;
  a.probability[b] = 0;
  if (!start(a, b, r)) return;

  const float* values = a.values + b * a.C;
  for (int64_t s = 0; s < a.S; ++s) {
    const auto step = static_cast<SampleStep>(a.steps[s]);
    apply(r, step, values, a.removable);
    values += sample_step_values(step);
  }
  for (int64_t i = 0; i < smaller(a.top, r.n) && r.p[i] > 0; ++i) {
    top_tokens[i] = r.id[i];
    top_probabilities[i] = r.p[i];
  }
  const int64_t chosen = draw(r, a.random[b]);
  a.token[b] = r.id[chosen];
  a.probability[b] = r.p[chosen];
}

}  // namespace

Status sample_chain(const SampleChainArgs& a) {
  if (a.V > std::numeric_limits<int32_t>::max()) return {"more than 2^31 - 1 logits in a row"};
  const int64_t blocks = block_count(a.V);
  std::atomic<bool> full{false};
  parallel_for(a.B, 1, [&](int64_t begin, int64_t end) {
    const int64_t bytes = a.V * int64_t{sizeof(Keyed) + 8} + 2 * blocks * 4;
    auto* memory = static_cast<Keyed*>(thread_scratch(Slot::sample, bytes));
    if (!memory) {
      full = true;
      return;
    }
    auto* id = reinterpret_cast<int32_t*>(memory + a.V);
    auto* p = reinterpret_cast<float*>(id + a.V);
    for (int64_t b = begin; b < end; ++b) {
      Row row{p, id, memory, p + a.V, p + a.V + blocks, 0};
      sample_row(a, b, row);
    }
  });
  if (full) return {"out of memory"};
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
