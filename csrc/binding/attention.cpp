// attention: check, fill the arguments, call.
#include "ops/attention.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernel` is that of either device.
template <typename Kernel>
Tensor attend(Check check, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
              const std::optional<Tensor>& lengths, double scale, bool causal, int64_t window, Kernel kernel) {
  AttentionArgs args{};
  args.dtype = check.floats(q_in, "q");
  check.type(k_in, "k", q_in.scalar_type());
  check.type(v_in, "v", q_in.scalar_type());
  check.shape(q_in, "q", {"B", "T", "H", "D"});
  check.shape(k_in, "k", {"B", "S", "Hk", "D"});
  check.shape(v_in, "v", {"B", "S", "Hk", "D"});
  args.B = check["B"];
  args.T = check["T"];
  args.S = check["S"];
  args.H = check["H"];
  args.Hk = check["Hk"];
  args.D = check["D"];
  check.that(args.Hk > 0 && args.H % args.Hk == 0, "q has H = ", args.H,
             " heads, expected a multiple of k's Hk = ", args.Hk);
  check.that(window >= 0, "window is ", window, ", expected 0 (no window) or more");
  std::optional<Tensor> filled;
  if (lengths.has_value()) {
    check.type(*lengths, "lengths", ScalarType::Long);
    check.shape(*lengths, "lengths", {"B"});
    filled = torch::stable::contiguous(*lengths);
    const int64_t S = args.S;
    check.each<int64_t>(*filled, "lengths", "0 to S, the rows of k", [S](int64_t n) { return n >= 0 && n <= S; });
  }
  const Tensor q = dense_last(q_in), k = dense_last(k_in), v = dense_last(v_in);
  Tensor o = with_last(q, args.D);
  args.q = q.data_ptr();
  args.k = k.data_ptr();
  args.v = v.data_ptr();
  args.o = o.data_ptr();
  args.lengths = static_cast<const int64_t*>(pointer(filled));
  args.q_stride_b = q.stride(0);
  args.q_stride_t = q.stride(1);
  args.q_stride_h = q.stride(2);
  args.k_stride_b = k.stride(0);
  args.k_stride_s = k.stride(1);
  args.k_stride_h = k.stride(2);
  args.v_stride_b = v.stride(0);
  args.v_stride_s = v.stride(1);
  args.v_stride_h = v.stride(2);
  args.scale = static_cast<float>(scale);
  args.causal = causal;
  args.window = window;
  if (o.numel() == 0) return o;
  check.done(kernel(args));
  return o;
}

}  // namespace

Tensor attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& lengths,
                     double scale, bool causal, int64_t window) {
  return attend(Check("attention"), q, k, v, lengths, scale, causal, window, cpu::attention);
}

#ifdef NYBBLE_CUDA
Tensor attention_cuda(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& lengths,
                      double scale, bool causal, int64_t window) {
  const CudaScope scope(q);
  return attend(Check("attention", true), q, k, v, lengths, scale, causal, window, [&](AttentionArgs args) {
    const Scratch scratch(q, cuda::attention_scratch_bytes(args));
    args.scratch = scratch.data();
    return cuda::attention(args, scope.stream());
  });
}
#endif

}  // namespace nybble::binding
