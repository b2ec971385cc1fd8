// o[b, t, h] = softmax(cap(scale * q[b, t, h] . k[s, g]) + slopes[h] (s - p)) v[s, g], g = h / (H / Hk), over the
// visible keys s of sequence b. Query t stands at position p = lengths[b] - T + t. Visible: s <= p; s > p - window if
// window > 0. cap(x) = softcap * tanh(x / softcap) if softcap > 0, else x. A query that sees no key gives zeros.
// Token s of sequence b lies in slot s % page of page block_table[b, s / page].
#pragma once
#include "ops/problem.h"

namespace nybble {

// How keys or values lie in memory: as q's dtype; float8 e5m2 (the upper byte of a half, ops/fp8.h); or rotated codes
// of 8 or 4 bits with scales, as kv_quantize writes them (ops/kv.h).
enum class KvKind : int32_t { plain, fp8, q8, q4 };

struct KvPages {
  const void* data;    // [P, page, Hk, D] items of q's dtype, or bytes: D of them (fp8, q8) or D / 2 (q4)
  const void* scales;  // [P, page, Hk, D / 32] float16 (q8, q4), or nullptr
  KvKind kind;
  int64_t stride_page, stride_slot, stride_head;  // of data, in its items; the last dimension has unit stride
  int64_t scales_page, scales_slot, scales_head;  // of scales, in halves
};

struct PagedAttentionArgs {
  const void* q;  // [B, T, H, D], dtype; unit stride along D
  void* o;        // [B, T, H, D], dtype, contiguous
  DType dtype;
  KvPages keys, values;
  const int32_t* block_table;  // [B, n] page numbers, or nullptr: flat caches, sequence b is page b and n = 1
  const int64_t* lengths;      // [B], tokens held with the T new ones; the GPU clamps them to 0 ... n * page
  const float* slopes;         // [H], ALiBi, or nullptr: 0
  int64_t B, T, H, Hk, D;
  int64_t P, page, n;  // pages there are, tokens of a page, pages of a row of the block table
  int64_t q_stride_b, q_stride_t, q_stride_h;
  int64_t block_table_stride;  // between its rows
  float scale;
  int64_t window;
  float softcap;
  bool invariant;  // CUDA: the bits of a sequence's result depend on that sequence alone
  void* scratch;   // CUDA: cuda::paged_attention_scratch_bytes(args), from a 16-byte boundary, any content
};

namespace cpu {
Status paged_attention(const PagedAttentionArgs&);
}
namespace cuda {
// For arguments that are complete but for scratch, on the current device.
int64_t paged_attention_scratch_bytes(const PagedAttentionArgs&);
Status paged_attention(const PagedAttentionArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
