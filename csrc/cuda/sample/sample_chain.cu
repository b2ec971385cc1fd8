// One token a row through a chain of steps. A cluster of blocks works on a row, then on another: the candidates lie in
// scratch memory, probabilities p[n] and ids id[n] in an order, and each step is a few passes over them.
//
//   logits -> p, id [ n = V ] -> step -> [ n ] -> step -> ... -> running sums -> token
//
// Once few candidates are left block 0 goes on alone: a barrier of a block takes less than one of a cluster.
#include "cuda/sample/top_p_stream.cuh"

namespace nybble::cuda {
namespace {

constexpr int64_t kMaxSteps = 512;
constexpr int64_t kMaxRows = 64;  // under way at a time

struct Steps {
  uint8_t number[kMaxSteps];
  uint8_t values[kMaxSteps];  // that the step takes
};

__device__ void apply(Candidates& c, SampleStep step, const float* v, const uint8_t* removable) {
  switch (step) {
    case SampleStep::top_k:
      return top_k(c, v[0]);
    case SampleStep::top_p:
      return top_p(c, v[0]);
    case SampleStep::top_p_stream:
      return top_p_stream(c, v[0]);
    case SampleStep::min_p:
      return min_p(c, v[0]);
    case SampleStep::top_a:
      return top_a(c, v[0]);
    case SampleStep::tail_free:
      return tail_free(c, v[0]);
    case SampleStep::typical:
      return typical(c, v[0], false);
    case SampleStep::typical_below:
      return typical(c, v[0], true);
    case SampleStep::surprise:
      return surprise(c, v[0]);
    case SampleStep::temper:
      return temper(c, v[0]);
    case SampleStep::dynamic_temper:
      return dynamic_temper(c, v[0], v[1], v[2]);
    case SampleStep::xtc:
      return xtc(c, v[0], v[1], removable);
    case SampleStep::sort:
      c.sort();
      return;
    case SampleStep::count:
      return;  // refused at the border
  }
}

// What the CPU refuses; each comparison is false for NaN.
__device__ bool good_values(const SampleChainArgs& a, const Steps& steps, int64_t b) {
  bool good = a.temperature[b] >= 0 && a.random[b] >= 0 && a.random[b] < 1;
  const float* v = a.values + b * a.C;
  for (int64_t s = 0; s < a.S; ++s) {
    const auto step = static_cast<SampleStep>(steps.number[s]);
    for (int i = 0; i < steps.values[s]; ++i) {
      const bool chance = step == SampleStep::xtc && i == 0;
      const float most = chance ? 1.0f : step == SampleStep::dynamic_temper ? FLT_MAX : INFINITY;
      good = good && v[i] >= 0 && v[i] <= most;
    }
    v += steps.values[s];
  }
  return good;
}

// The candidates at the start; none where the row has none.
__device__ void start(Candidates& c, const SampleChainArgs& a, int64_t b) {
  const float* row = a.logits + b * a.stride;
  const uint8_t* allowed = a.allowed ? a.allowed + b * a.V : nullptr;
  const auto logit = [&](float x, unsigned i) { return !allowed || allowed[i] ? x : -INFINITY; };
  c.n = 0;
  c.by_id = true;
  Extent extent;
  for_each<4>(c.team, row, c.V, [&](float x, unsigned i) { extent.take(logit(x, i), i); });
  extent = c.team.reduce(extent, Plus{});
  if (extent.nothing()) return;
  if (a.temperature[b] == 0) {
    if (c.team.thread() == 0) {
      c.p[0] = 1.0f;
      c.id[0] = extent.id;
    }
    c.n = 1;
  } else {
    const Softmax softmax(extent.largest, a.temperature[b]);
    const float one = whole_numbers(c.V);
    u64 all = 0;
    for_each<2>(c.team, row, c.V, [&](float x, unsigned i) {
      c.p[i] = softmax(logit(x, i));
      c.id[i] = i;
      all += __float2ull_rn(c.p[i] * one);
    });
    c.n = c.V;
    c.scale(all, one);
  }
  c.team.sync();
}

// The drawn candidate, and the first ones.
__device__ void finish(Candidates& c, const SampleChainArgs& a, int64_t b) {
  const auto t = static_cast<int64_t>(c.team.thread()), threads = static_cast<int64_t>(c.team.threads());
  u64 all = 0;
  unsigned some = c.n;  // before the first that has no chance
  c.each([&](unsigned i) {
    all += mass(c.p[i]);
    if (!(c.p[i] > 0)) some = min(some, i);
  });
  all = c.team.reduce(all, Plus{});
  if (a.top > 0) some = c.team.reduce(some, Least{});
  for (int64_t i = t; i < a.top; i += threads) {
    a.top_tokens[b * a.top + i] = i < some ? static_cast<int64_t>(c.id[i]) : -1;
    a.top_probabilities[b * a.top + i] = i < some ? c.p[i] : 0.0f;
  }
  const unsigned drawn = c.n > 0 ? reached_by_mass(c, beyond(a.random[b], all)) : c.n;
  if (t > 0) return;
  a.token[b] = drawn < c.n ? static_cast<int64_t>(c.id[drawn]) : -1;
  a.probability[b] = drawn < c.n ? c.p[drawn] : 0.0f;
}

// a: as in ops/sample.h, all on the device but a.steps, which `steps` brings along.
__global__ void __launch_bounds__(kTeamThreads, 1) sample_chain_kernel(SampleChainArgs a, Steps steps) {
  wait_for_previous();
  let_next_begin();
  __shared__ Shared shared;
  const auto V = static_cast<unsigned>(a.V);
  const unsigned blocks = cluster_blocks(), slot = blockIdx.x / blocks;
  Candidates c(shared, V, static_cast<char*>(a.scratch) + slot * Candidates::bytes(a.V));
  for (int64_t b = slot; b < a.B; b += gridDim.x / blocks) {
    c.team.together();
    bool left = false;
    c.n = 0;
    if (good_values(a, steps, b)) start(c, a, b);
    const float* values = a.values + b * a.C;
    for (int64_t s = 0; s < a.S && c.n > 0 && !left; ++s) {
      const auto step = static_cast<SampleStep>(steps.number[s]);
      apply(c, step, values, a.removable);
      values += steps.values[s];
      if (c.n > kTeamThreads) continue;
      left = c.team.rank > 0;
      c.team.alone();
    }
    if (!left) finish(c, a, b);
    cluster_sync();
  }
}

int64_t rows_at_a_time(const SampleChainArgs& a) { return a.B < kMaxRows ? a.B : kMaxRows; }

}  // namespace

int64_t sample_chain_scratch(const SampleChainArgs& a) { return rows_at_a_time(a) * Candidates::bytes(a.V); }

Status sample_chain(const SampleChainArgs& a, Stream stream) {
  if (a.B == 0) return {};
  if (a.V > 0x7fffffff) return {"more than 2^31 - 1 logits in a row"};
  if (a.S > kMaxSteps) return {"more than 512 steps"};
  Steps steps{};
  for (int64_t s = 0; s < a.S; ++s) {
    steps.number[s] = static_cast<uint8_t>(a.steps[s]);
    steps.values[s] = static_cast<uint8_t>(sample_step_values(static_cast<SampleStep>(a.steps[s])));
  }
  const int64_t rows = rows_at_a_time(a);
  const unsigned blocks = blocks_of_row(rows, a.V);
  return launch_clusters(sample_chain_kernel, dim3(static_cast<unsigned>(rows) * blocks), static_cast<int>(blocks),
                         dim3(kTeamThreads), 0, stream, gpu().sm >= 90, a, steps);
}

}  // namespace nybble::cuda
