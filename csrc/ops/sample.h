// The choice of the next token of each row of logits.
#pragma once
#include "ops/problem.h"

namespace nybble {

// One token a row. Order: temperature, softmax, top-k, top-p, min-p, then inverse transform with `random`.
// Candidates are sorted by (probability descending, id ascending). top-p keeps the shortest prefix whose mass reaches p
// (at least one); min-p keeps probability >= min_p * largest. The kept mass is renormalised; the token is the first
// whose running sum exceeds random * mass. temperature 0 is greedy: the lowest id among the largest logits. A row of
// NaN or of -inf only gives -1.
struct SampleArgs {
  const float* logits;  // [B, V], rows stride elements apart
  int64_t stride;
  const float* temperature;  // [B], >= 0
  const int64_t* top_k;      // [B], 0: off
  const float* top_p;        // [B], 1: off
  const float* min_p;        // [B], 0: off
  const float* random;       // [B], uniform in [0, 1)
  int64_t* token;            // [B], out
  int64_t B, V;
};

// The steps of sample_chain; the comment gives the values each takes from a row of `values`.
// "Sorts": descending by probability, then by id. Probabilities are renormalised after a step that drops candidates.
enum class SampleStep : int64_t {
  top_k,           // k: the k largest, sorted; 0: off
  top_p,           // p: sorts; the shortest prefix whose mass reaches p; 1 or more: off
  top_p_stream,    // p: streams past a heap whose mass stays within p (sample_chain.cpp); 1 or more: off
  min_p,           // p: probability >= p * largest
  top_a,           // a: probability >= a * largest^2
  tail_free,       // z: sorts; up to where second differences sum to z of their total; 1 or more: off
  typical,         // p: by |-ln probability - entropy|, the shortest prefix whose mass reaches p; 1 or more: off
  typical_below,   // p: by |probability + ln probability - its mean|, while the mass stays below p; 1 or more: off
  surprise,        // bits: sorts; -log2 probability <= bits, at least the largest; inf: off
  temper,          // t: probability^(1 / t), renormalised; 1: off
  dynamic_temper,  // low, high, e: temper with t = low + (high - low) (entropy / largest entropy)^e
  xtc,             // chance, threshold: of the removable ones that reach the threshold all but the least probable
                   // lose the share `chance`, and the others gain it in proportion
  sort,            // sorts
  count
};

// How many values each step takes.
constexpr int64_t sample_step_values(SampleStep step) {
  return step == SampleStep::dynamic_temper ? 3 : step == SampleStep::xtc ? 2 : step == SampleStep::sort ? 0 : 1;
}

// One token a row through steps in any order. At first every token is a candidate, in order of id, with its probability
// softmax(logits / temperature); those that are not allowed have probability 0. Each step drops candidates, changes
// their probabilities or their order. The token is the first, in the order the last step leaves, whose running sum
// exceeds random * mass. temperature 0: the lowest id among the largest logits is the only candidate, whatever the
// steps. A row of NaN, or with no logit above -inf that is allowed, gives token -1 with probability 0.
struct SampleChainArgs {
  const float* logits;  // [B, V], rows stride elements apart
  int64_t stride;
  const float* temperature;  // [B], >= 0
  const uint8_t* allowed;    // [B, V], 0: no; nullptr: every token
  const uint8_t* removable;  // [V], 0: no; tokens that xtc may make less probable; nullptr: all
  const int64_t* steps;      // [S], SampleStep
  const float* values;       // [B, C], the steps' values one after another; none is negative or nan
  const float* random;       // [B], uniform in [0, 1)
  int64_t* token;            // [B], out
  float* probability;        // [B], out: of the token, among the candidates left
  int64_t* top_tokens;       // [B, top], out: the first candidates; -1 where there are fewer, or their probability is 0
  float* top_probabilities;  // [B, top], out
  int64_t B, V, S, C, top;
  void* scratch;  // the GPU's work memory
};

// In place. Positions count from the last token, which is 0; -1 (no token) counts too. Strength is 1 at positions up to
// sustain, from there it falls by 1 / decay a position, to 0; where decay is 0 it ends before position sustain.
//   at the first sight of a token: logits[b, t] *= p if negative else /= p, with p = 1 + strength (penalty - 1),
//   then -= strength presence; at each sight: -= strength frequency.
struct RepetitionPenaltyArgs {
  float* logits;  // [B, V], rows stride elements apart
  int64_t stride;
  const int64_t* tokens;   // [B, L], -1 or in [0, V)
  const float* penalty;    // [B], > 0
  const float* frequency;  // [B]; nullptr: 0
  const float* presence;   // [B]; nullptr: 0
  int64_t sustain, decay;  // sustain -1: L
  int64_t B, V, L;
  void* scratch;  // the GPU's work memory
};

namespace cpu {
Status sample(const SampleArgs&);
Status sample_chain(const SampleChainArgs&);
Status repetition_penalty(const RepetitionPenaltyArgs&);
}  // namespace cpu
// What the CPU refuses for its value, a kernel on the GPU sees: a row with such a value gets token -1 (probability 0),
// a token outside the vocabulary is no token. The scratch functions say how many bytes the op needs.
namespace cuda {
Status sample(const SampleArgs&, Stream);
int64_t sample_chain_scratch(const SampleChainArgs&);
Status sample_chain(const SampleChainArgs&, Stream);
int64_t repetition_penalty_scratch(const RepetitionPenaltyArgs&);
Status repetition_penalty(const RepetitionPenaltyArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
