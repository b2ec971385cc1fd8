// decode_attention: check, fill the arguments, call.
#include "ops/decode_attention.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernel` is that of either device.
template <typename Kernel>
Tensor attend(Check check, const Tensor& q_in, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
              const std::optional<Tensor>& slopes, double scale, Kernel kernel) {
  DecodeAttentionArgs args{};
  args.dtype = check.floats(q_in, "q");
  check.shape(q_in, "q", {"B", "H", "D"});
  check.type(v_cache, "v_cache", q_in.scalar_type());
  check.shape(v_cache, "v_cache", {"B", "Hk", "L", "D"});
  check.contiguous(v_cache, "v_cache");
  args.B = check["B"];
  args.H = check["H"];
  args.Hk = check["Hk"];
  args.L = check["L"];
  args.D = check["D"];
  const int64_t x = 16 / static_cast<int64_t>(q_in.element_size());
  check.that(args.D % x == 0, "q has D = ", args.D, ", expected a multiple of ", x, " (16 bytes)");
  check.let("D/x", args.D / x, "q");
  check.let("x", x, "the dtype");
  check.type(k_cache, "k_cache", q_in.scalar_type());
  check.shape(k_cache, "k_cache", {"B", "Hk", "D/x", "L", "x"});
  check.contiguous(k_cache, "k_cache");
  check.that(args.Hk > 0 && args.H % args.Hk == 0, "q has H = ", args.H,
             " heads, expected a multiple of v_cache's Hk = ", args.Hk);
  check.type(lengths, "lengths", ScalarType::Long);
  check.shape(lengths, "lengths", {"B"});
  const Tensor filled = torch::stable::contiguous(lengths);
  check.each<int64_t>(filled, "lengths", "0 or more", [](int64_t n) { return n >= 0; });
  if (slopes.has_value()) {
    check.type(*slopes, "slopes", ScalarType::Float);
    check.shape(*slopes, "slopes", {"H"});
    check.contiguous(*slopes, "slopes");
  }
  const Tensor q = dense_last(q_in);
  Tensor o = with_last(q, args.D);
  if (o.numel() == 0) return o;
  args.q = q.data_ptr();
  args.k = k_cache.data_ptr();
  args.v = v_cache.data_ptr();
  args.o = o.data_ptr();
  args.lengths = static_cast<const int64_t*>(filled.data_ptr());
  args.slopes = static_cast<const float*>(pointer(slopes));
  args.q_stride_b = q.stride(0);
  args.q_stride_h = q.stride(1);
  args.scale = static_cast<float>(scale);
  check.done(kernel(args));
  return o;
}

}  // namespace

Tensor decode_attention_cpu(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                            const std::optional<Tensor>& slopes, double scale) {
  return attend(Check("decode_attention"), q, k_cache, v_cache, lengths, slopes, scale, cpu::decode_attention);
}

#ifdef NYBBLE_CUDA
Tensor decode_attention_cuda(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                             const std::optional<Tensor>& slopes, double scale) {
  const CudaScope scope(q);
  return attend(Check("decode_attention", true), q, k_cache, v_cache, lengths, slopes, scale,
                [&](DecodeAttentionArgs args) {
                  const Scratch scratch(q, cuda::decode_attention_scratch_bytes(args));
                  args.scratch = scratch.data();
                  return cuda::decode_attention(args, scope.stream());
                });
}
#endif

}  // namespace nybble::binding
