// Attention of few queries where tensor cores do not serve: paged_attention spreads the keys of one KV head over the
// whole device. A flat cache is one page a sequence.
#include "cuda/attention/rows.cuh"
#include "cuda/common/launch.cuh"
#include "ops/paged_attention.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void fill_kernel(int64_t* to,  // [n]
                            int64_t n, int64_t value) {
  wait_for_previous();
  let_next_begin();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) to[i] = value;
}

PagedAttentionArgs as_pages(const AttentionArgs& a) {
  PagedAttentionArgs p{};
  p.q = a.q, p.o = a.o, p.dtype = a.dtype;
  p.keys = {a.k, nullptr, KvKind::plain, a.k_stride_b, a.k_stride_s, a.k_stride_h, 0, 0, 0};
  p.values = {a.v, nullptr, KvKind::plain, a.v_stride_b, a.v_stride_s, a.v_stride_h, 0, 0, 0};
  p.lengths = a.lengths;
  p.B = a.B, p.T = a.T, p.H = a.H, p.Hk = a.Hk, p.D = a.D;
  p.P = a.B, p.page = a.S, p.n = 1;
  p.q_stride_b = a.q_stride_b, p.q_stride_t = a.q_stride_t, p.q_stride_h = a.q_stride_h;
  p.scale = a.scale, p.window = a.window;
  return p;
}

// Lengths that were not given, in front of the scratch.
int64_t lengths_bytes(const AttentionArgs& a) { return a.lengths != nullptr ? 0 : (a.B * 8 + 15) / 16 * 16; }

Status run(const AttentionArgs& a, Stream stream) {
  PagedAttentionArgs p = as_pages(a);
  p.scratch = static_cast<char*>(a.scratch) + lengths_bytes(a);
  if (a.lengths == nullptr) {
    auto* lengths = static_cast<int64_t*>(a.scratch);
    const Status filled = launch(fill_kernel, static_cast<unsigned>((a.B + kThreads - 1) / kThreads), kThreads, 0,
                                 stream, gpu().sm >= 90, lengths, a.B, a.S);
    if (!filled.ok()) return filled;
    p.lengths = lengths;
  }
  return paged_attention(p, stream);
}

bool supports(const AttentionArgs& a) {
  return a.T * (a.H / a.Hk) <= 16 && (a.causal || a.T == 1) && a.D <= 512 && a.S > 0;
}

int64_t scratch_bytes(const AttentionArgs& a) { return lengths_bytes(a) + paged_attention_scratch_bytes(as_pages(a)); }

}  // namespace

const AttentionKernel attention_paged{supports, scratch_bytes, run};

}  // namespace nybble::cuda
