// o[b, t, h] = softmax(scale * q[b, t, h] . k[b, s, h / (H / Hk)]) v, over the visible keys s.
// Query t of sequence b stands at position p = lengths[b] - T + t. Visible: s < lengths[b], s <= p if causal,
// s > p - window if window > 0. A query that sees no key gives zeros.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct AttentionArgs {
  const void *q, *k, *v;  // q [B, T, H, D]; k, v [B, S, Hk, D]; dtype; unit stride along D
  void* o;                // [B, T, H, D], dtype, contiguous
  DType dtype;
  const int64_t* lengths;  // [B], 0 <= lengths[b] <= S, or nullptr: S
  int64_t B, T, S, H, Hk, D;
  int64_t q_stride_b, q_stride_t, q_stride_h;
  int64_t k_stride_b, k_stride_s, k_stride_h;
  int64_t v_stride_b, v_stride_s, v_stride_h;
  float scale;
  bool causal;
  int64_t window;
  void* scratch;  // cuda: attention_scratch_bytes() of memory, from a 16-byte boundary
};

namespace cpu {
Status attention(const AttentionArgs&);
}
namespace cuda {
int64_t attention_scratch_bytes(const AttentionArgs&);
Status attention(const AttentionArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
