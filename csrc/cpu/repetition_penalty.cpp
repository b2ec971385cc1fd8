#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops/sample.h"

namespace nybble::cpu {
namespace {

// `seen` has one bit a token of the vocabulary.
void penalise_row(const RepetitionPenaltyArgs& a, int64_t b, uint8_t* seen) {
  const double penalty = a.penalty[b], frequency = a.frequency ? a.frequency[b] : 0.0;
  const double presence = a.presence ? a.presence[b] : 0.0;
  const int64_t full = a.sustain < 0 ? a.L : std::min(a.sustain, a.L);
  const int64_t reach = full + std::min(a.decay, a.L - full);
  const int64_t* last = a.tokens + b * a.L + a.L - 1;
  float* x = a.logits + b * a.stride;
  for (int64_t k = 0; k < reach; ++k) {
    const int64_t t = last[-k];
    if (t < 0) continue;
    const double strength = k <= full ? 1.0 : 1.0 - double(k - full) / double(a.decay);
    uint8_t& byte = seen[t / 8];
    const uint8_t bit = uint8_t(1 << (t % 8));
    float y = x[t];
    if (!(byte & bit)) {
      byte = uint8_t(byte | bit);
      const float factor = float(1.0 + strength * (penalty - 1.0));
      y = y < 0 ? y * factor : y / factor;
      y -= float(strength * presence);
    }
    x[t] = y - float(strength * frequency);
  }
}

}  // namespace

Status repetition_penalty(const RepetitionPenaltyArgs& a) {
  const int64_t bytes = (a.V + 7) / 8;
  std::atomic<bool> full{false};
  // About 16 K tokens a piece.
  const int64_t grain = std::max<int64_t>(1, 16384 / (a.L + bytes / 64 + 1));
  parallel_for(a.B, grain, [&](int64_t begin, int64_t end) {
    auto* seen = static_cast<uint8_t*>(thread_scratch(Slot::penalty, bytes));
    if (!seen) {
      full = true;
      return;
    }
    for (int64_t b = begin; b < end; ++b) {
      std::memset(seen, 0, size_t(bytes));
      penalise_row(a, b, seen);
    }
  });
  if (full) return {"out of memory"};
  return {};
}

}  // namespace nybble::cpu
