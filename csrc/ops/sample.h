// One token a row. Order: temperature, softmax, top-k, top-p, min-p, then inverse transform with `random`.
// Candidates are sorted by (probability descending, id ascending). top-p keeps the shortest prefix whose mass reaches p
// (at least one); min-p keeps probability >= min_p * largest. The kept mass is renormalised; the token is the first whose
// running sum exceeds random * mass. temperature 0 is greedy: the lowest id among the largest logits.
// A row of NaN or of -inf only gives -1.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct SampleArgs {
  const float* logits;       // [B, V], rows stride elements apart
  int64_t stride;
  const float* temperature;  // [B], >= 0
  const int64_t* top_k;      // [B], 0: off
  const float* top_p;        // [B], 1: off
  const float* min_p;        // [B], 0: off
  const float* random;       // [B], uniform in [0, 1)
  int64_t* token;            // [B], out
  int64_t B, V;
  void* scratch;             // sample_scratch_bytes()
};

// In place: logits[b, t] *= penalty if negative else /= penalty, once for each distinct token t of the row (-1: padding).
struct RepetitionPenaltyArgs {
  float* logits;          // [B, V], rows stride elements apart
  int64_t stride;
  const int64_t* tokens;  // [B, L], -1 or in [0, V)
  const float* penalty;   // [B], > 0
  int64_t B, V, L;
};

namespace cpu {
int64_t sample_scratch_bytes(const SampleArgs&);
Status sample(const SampleArgs&);
Status repetition_penalty(const RepetitionPenaltyArgs&);
}  // namespace cpu
namespace cuda {
Status sample(const SampleArgs&, Stream);
Status repetition_penalty(const RepetitionPenaltyArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
