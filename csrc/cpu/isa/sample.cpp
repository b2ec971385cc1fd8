#include "ops/sample.h"

#include <atomic>

#include "cpu/isa/candidates.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

struct Candidate {
  float logit, weight;  // weight: probability times a constant, the largest has 1
  int32_t id;
};
bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

struct Row {
  const float* x;
  int64_t V;
  float *most, *work;  // [blocks]
  Candidate* all;      // [V]
};

// The row's candidates in order, fetched and sorted only as far as somebody looks.
class Sorted {
 public:
  Sorted(const Row& row, const Softmax& softmax) : row_(row), softmax_(softmax) {}

  const Candidate& at(int64_t i) {
    while (i >= ready_) extend(i);
    return row_.all[i];
  }

 private:
  void extend(int64_t i) {
    if (fetched_ == ready_) fetch(std::max<int64_t>(64, 4 * i));
    Candidate *from = row_.all + ready_, *end = row_.all + fetched_;
    Candidate* to = from + std::min(end - from, std::max<int64_t>(256, 3 * ready_));
    if (to != end) std::nth_element(from, to, end, before);
    std::sort(from, to, before);
    ready_ = to - row_.all;
  }

  // Appends the candidates from below what is there down to where there are `wanted` in all.
  void fetch(int64_t wanted) {
    const int64_t blocks = block_count(row_.V);
    const float least = reached_by(row_.most, blocks, wanted, row_.work);
    for (int64_t b = 0; b < blocks; ++b) {
      if (row_.most[b] < least) continue;
      const int64_t begin = b * block_size, n = smaller(block_size, row_.V - begin);
      float weight[block_size];
      softmax_(row_.x + begin, n, weight);
      for (int64_t j = 0; j < n; ++j) {
        const float x = row_.x[begin + j];
        if (x >= least && (x < last_ || fresh_)) row_.all[fetched_++] = {x, weight[j], int32_t(begin + j)};
      }
    }
    last_ = least;
    fresh_ = false;
  }

  Row row_;
  const Softmax& softmax_;
  float last_ = infinity;  // logits below it are not fetched yet
  bool fresh_ = true;      // nothing is, not even inf
  int64_t ready_ = 0, fetched_ = 0;
};

// The mass of candidates whose weight is `least` or more.
double mass(const Row& row, const Softmax& softmax, float least) {
  double sum = 0;
  for (int64_t begin = 0; begin < row.V; begin += block_size) {
    const int64_t n = smaller(block_size, row.V - begin);
    float weight[block_size];
    const float all = softmax(row.x + begin, n, weight);
    if (least <= 0) {
      sum += all;
    } else {
      for (int64_t j = 0; j < n; ++j) sum += weight[j] >= least ? weight[j] : 0.0f;
    }
  }
  return sum;
}

int64_t sample_row(const SampleArgs& a, int64_t b, const Row& row) {
  if (!block_maxima(row.x, row.V, row.most)) return -1;
  const float largest = *std::max_element(row.most, row.most + block_count(row.V));
  if (largest == -infinity) return -1;
  if (a.temperature[b] == 0.0f) return first_at_least(row.x, row.most, largest);

  const Softmax softmax(largest, a.temperature[b]);
  Sorted sorted(row, softmax);
  const float least = std::min(a.min_p[b], 1.0f), p = a.top_p[b];
  const int64_t k = a.top_k[b] > 0 ? smaller(a.top_k[b], row.V) : row.V;

  // Each filter keeps a prefix of the sorted candidates, so the shortest of the prefixes is what is kept.
  int64_t count = row.V;
  double kept;
  if (k < row.V || p < 1.0f) {
    const double wanted = p < 1.0f ? double(p) * mass(row, softmax, 0) : double(infinity);
    kept = sorted.at(0).weight;
    count = 1;
    while (count < k && kept < wanted && sorted.at(count).weight >= least) kept += sorted.at(count++).weight;
  } else {
    kept = mass(row, softmax, least);
  }

  const double target = double(a.random[b]) * kept;
  double sum = 0;
  int64_t token = sorted.at(0).id;
  for (int64_t i = 0; i < count; ++i) {
    const Candidate& c = sorted.at(i);
    if (c.weight == 0 || c.weight < least) break;  // rounding may leave the sum just short: the last that has a chance
    token = c.id;
    sum += c.weight;
    if (sum > target) break;
  }
  return token;
}

}  // namespace

Status sample(const SampleArgs& a) {
  if (a.V > std::numeric_limits<int32_t>::max()) return {"more than 2^31 - 1 logits in a row"};
  const int64_t blocks = block_count(a.V);
  std::atomic<bool> full{false};
  parallel_for(a.B, 1, [&](int64_t begin, int64_t end) {
    char* memory = static_cast<char*>(thread_scratch(Slot::sample, a.V * int64_t{sizeof(Candidate)} + 2 * blocks * 4));
    if (!memory) {
      full = true;
      return;
    }
    float* most = reinterpret_cast<float*>(memory + a.V * int64_t{sizeof(Candidate)});
    for (int64_t b = begin; b < end; ++b) {
      const Row row{a.logits + b * a.stride, a.V, most, most + blocks, reinterpret_cast<Candidate*>(memory)};
      a.token[b] = sample_row(a, b, row);
    }
  });
  if (full) return {"out of memory"};
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
