// o[b, h] = softmax(scale * q[b, h] . k[b, g, t] + slopes[h] (t - n)) v[b, g, t], g = h / (H / Hk), over the tokens in
// the ring: n = lengths[b] - 1, t from max(0, lengths[b] - L) to n, token t in slot t mod L. Length 0 gives zeros.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct DecodeAttentionArgs {
  const void* q;  // [B, H, D], dtype; strides in elements below, unit stride along D
  const void* k;  // [B, Hk, D/X, L, X], dtype, contiguous; X = 16 bytes of elements
  const void* v;  // [B, Hk, L, D], dtype, contiguous
  void* o;        // [B, H, D], dtype, contiguous
  DType dtype;
  const int64_t* lengths;  // [B], 0 or more
  const float* slopes;     // [H], or nullptr: 0
  int64_t B, H, Hk, L, D;  // H a multiple of Hk, D of X
  int64_t q_stride_b, q_stride_h;
  float scale;
  void* scratch;  // cuda: decode_attention_scratch_bytes() of memory, from a 16-byte boundary
};

namespace cpu {
Status decode_attention(const DecodeAttentionArgs&);
}
namespace cuda {
int64_t decode_attention_scratch_bytes(const DecodeAttentionArgs&);
Status decode_attention(const DecodeAttentionArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
