// Which kernel computes attention.
#include "cuda/attention/rows.cuh"
#include "cuda/common/launch.cuh"

namespace nybble::cuda {
namespace {

// The first that supports a problem takes it; the last takes all. On an H200, 32 heads on 8 KV heads of 128 channels:
// 2048 queries under a causal mask, wgmma 70 us, mma 129 us; one query over 2048 keys, mma 9 us, paged 28 us.
const AttentionKernel& choose(const AttentionArgs& a) {
  for (const AttentionKernel* kernel : {&attention_wgmma, &attention_mma, &attention_paged})
    if (kernel->supports(a)) return *kernel;
  return attention_plain;
}

// A dimension of one has no stride; one that suits every kernel.
AttentionArgs settled(AttentionArgs a) {
  const auto settle = [&](int64_t size, int64_t& stride) {
    if (size == 1) stride = (a.D + 7) / 8 * 8;
  };
  settle(a.B, a.q_stride_b), settle(a.T, a.q_stride_t), settle(a.H, a.q_stride_h);
  settle(a.B, a.k_stride_b), settle(a.S, a.k_stride_s), settle(a.Hk, a.k_stride_h);
  settle(a.B, a.v_stride_b), settle(a.S, a.v_stride_s), settle(a.Hk, a.v_stride_h);
  return a;
}

bool empty(const AttentionArgs& a) { return a.B * a.T * a.H * a.D == 0; }

}  // namespace

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  if (empty(args)) return 0;
  const AttentionArgs a = settled(args);
  return choose(a).scratch_bytes(a);
}

Status attention(const AttentionArgs& args, Stream stream) {
  if (empty(args)) return {};
  const AttentionArgs a = settled(args);
  if (a.S > 0x7fffff00 || a.T * (a.H / a.Hk) > 0x7fffff00)
    return {"attention: more than 2^31 keys, or queries of a KV head"};
  return choose(a).run(a, stream);
}

}  // namespace nybble::cuda
