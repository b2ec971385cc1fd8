// qmatmul: check, fill the arguments, call.
#include "ops/qmatmul.h"

#include "binding/bindings.h"
#include "binding/packed.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// What is done to x before the product, by the ops of the device: `norm_op` and `gate_op`.
template <typename Norm, typename Gate>
Tensor prepared(const Check& check, const Tensor& x, const std::optional<Tensor>& norm, double eps, int64_t gate,
                Norm norm_op, Gate gate_op) {
  check.that(!norm.has_value() || gate < 0, "norm and gate are both given, expected one of them");
  check.that(x.dim() >= 1, "x has shape [], expected [..., K]");
  if (norm.has_value()) return norm_op(x, *norm, eps, std::nullopt);
  return gate < 0 ? x : gate_op("qmatmul", x, gate);
}

// x is prepared already; `scratch_bytes` and `kernel` are those of the device.
template <typename Bytes, typename Kernel>
Tensor product(Check& check, const Tensor& x, const Tensor& weight, const Tensor& scales,
               const std::optional<Tensor>& zeros, const std::optional<Tensor>& perm, const Tensor& blocks,
               const std::optional<Tensor>& bias, int64_t N, int64_t act_bits, const std::optional<Tensor>& add,
               bool invariant, Bytes scratch_bytes, Kernel kernel) {
  QMatmulArgs args{};
  args.x_dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "K"});
  check.that(act_bits == 8 || act_bits == 16 || act_bits == 32, "act_bits is ", act_bits, ", expected 8, 16 or 32");
  const int64_t K = check["K"];
  const Packed packed = check_packed(check, weight, scales, zeros, perm, blocks, K, N);
  if (bias.has_value()) {
    check.type(*bias, "bias", x.scalar_type());
    check.shape(*bias, "bias", {"N"});
    check.contiguous(*bias, "bias");
  }

  Tensor y = with_last(x, N);
  const Rows rows(x), added(add.has_value() ? *add : y);
  if (add.has_value()) {
    check.type(*add, "add", x.scalar_type());
    check.same_shape(*add, "add", y, "the result");
    args.add = added.data();
    args.add_stride = added.stride;
  }
  args.x = rows.data();
  args.x_stride = rows.stride;
  args.weight = packed.weight;
  args.scales = packed.scales;
  args.zeros = packed.zeros;
  args.perm = packed.perm;
  args.blocks = packed.blocks;
  args.bias = pointer(bias);
  args.y = y.data_ptr();
  args.M = rows.R;
  args.N = N;
  args.K = K;
  args.KB = packed.KB;
  args.G = packed.G;
  args.act_bits = static_cast<int>(act_bits);
  args.invariant = invariant;
  if (args.M * N == 0) return y;
  const Scratch scratch(x, scratch_bytes(args));
  args.scratch = scratch.data();
  check.done(kernel(args));
  return y;
}

}  // namespace

Tensor qmatmul_cpu(const Tensor& given, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias,
                   int64_t N, int64_t act_bits, const std::optional<Tensor>& norm, double eps, int64_t gate,
                   const std::optional<Tensor>& add, bool) {  // a row by itself is all the CPU kernels do
  Check check("qmatmul");
  const Tensor x = prepared(check, given, norm, eps, gate, rms_norm_cpu, gate_halves_cpu);
  return product(check, x, weight, scales, zeros, perm, blocks, bias, N, act_bits, add, true,
                 cpu::qmatmul_scratch_bytes, cpu::qmatmul);
}

#ifdef NYBBLE_CUDA
Tensor qmatmul_cuda(const Tensor& given, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                    const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias,
                    int64_t N, int64_t act_bits, const std::optional<Tensor>& norm, double eps, int64_t gate,
                    const std::optional<Tensor>& add, bool invariant) {
  Check check("qmatmul", true);
  const CudaScope scope(given);
  const Tensor x = prepared(check, given, norm, eps, gate, rms_norm_cuda, gate_halves_cuda);
  return product(check, x, weight, scales, zeros, perm, blocks, bias, N, act_bits, add, invariant,
                 cuda::qmatmul_scratch_bytes,
                 [&](const QMatmulArgs& args) { return cuda::qmatmul(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
