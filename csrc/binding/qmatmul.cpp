// qmatmul: check, fill the arguments, call.
#include "ops/qmatmul.h"

#include "binding/bindings.h"
#include "binding/packed.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// What is done to x before the product.
struct Before {
  const std::optional<Tensor>& norm;
  double eps;
  int64_t gate;
  bool any() const { return norm.has_value() || gate >= 0; }
};

// By the ops of the device: `norm_op` and `gate_op`.
template <typename Norm, typename Gate>
Tensor prepared(const Tensor& x, const Before& before, Norm norm_op, Gate gate_op) {
  if (before.norm.has_value()) return norm_op(x, *before.norm, before.eps, std::nullopt);
  return before.gate < 0 ? x : gate_op("qmatmul", x, before.gate);
}

// `prepares` answers whether the kernel does what is to be done before; else `prepare` gives x so changed.
// `scratch_bytes` and `kernel` are those of the device.
template <typename Prepares, typename Prepare, typename Bytes, typename Kernel>
Tensor product(Check& check, const Tensor& given, const Tensor& weight, const Tensor& scales,
               const std::optional<Tensor>& zeros, const std::optional<Tensor>& perm, const Tensor& blocks,
               const std::optional<Tensor>& bias, int64_t N, int64_t act_bits, const Before& before,
               const std::optional<Tensor>& add, bool invariant, Prepares prepares, Prepare prepare,
               Bytes scratch_bytes, Kernel kernel) {
  check.that(!before.norm.has_value() || before.gate < 0, "norm and gate are both given, expected one of them");
  check.that(given.dim() >= 1, "x has shape [], expected [..., K]");
  QMatmulArgs args{};
  args.x_dtype = check.floats(given, "x");
  check.that(act_bits == 8 || act_bits == 16 || act_bits == 32, "act_bits is ", act_bits, ", expected 8, 16 or 32");
  const int64_t columns = given.size(given.dim() - 1), K = before.gate < 0 ? columns : columns / 2;
  check.that(before.gate < 0 || columns % 2 == 0, "x has ", columns,
             " columns, expected a gate and as many to be gated");
  check.let("K", K, "x");
  const Packed packed = check_packed(check, weight, scales, zeros, perm, blocks, K, N);
  if (bias.has_value()) {
    check.type(*bias, "bias", given.scalar_type());
    check.shape(*bias, "bias", {"N"});
    check.contiguous(*bias, "bias");
  }

  Tensor y = with_last(given, N);
  if (add.has_value()) {
    check.type(*add, "add", given.scalar_type());
    check.same_shape(*add, "add", y, "the result");
  }
  const Rows added(add.has_value() ? *add : y);
  if (add.has_value()) {
    args.add = added.data();
    args.add_stride = added.stride;
  }
  args.weight = packed.weight;
  args.scales = packed.scales;
  args.zeros = packed.zeros;
  args.perm = packed.perm;
  args.blocks = packed.blocks;
  args.bias = pointer(bias);
  args.y = y.data_ptr();
  args.N = N;
  args.K = K;
  args.KB = packed.KB;
  args.G = packed.G;
  args.act_bits = static_cast<int>(act_bits);
  args.invariant = invariant;

  const auto read = [&](const Rows& rows) {
    args.x = rows.data();
    args.x_stride = rows.stride;
    args.M = rows.R;
  };
  const auto run = [&] {
    if (args.M * N == 0) return y;
    const Scratch scratch(y, scratch_bytes(args));
    args.scratch = scratch.data();
    check.done(kernel(args));
    return y;
  };
  if (before.any()) {
    const Rows rows(given);
    read(rows);
    if (prepares(check, args, before)) return run();
    args.norm = nullptr;
    args.gate = -1;
  }
  const Tensor x = prepare(given);
  const Rows rows(x);
  read(rows);
  return run();
}

}  // namespace

Tensor qmatmul_cpu(const Tensor& given, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias,
                   int64_t N, int64_t act_bits, const std::optional<Tensor>& norm, double eps, int64_t gate,
                   const std::optional<Tensor>& add, bool) {  // a row by itself is all the CPU kernels do
  Check check("qmatmul");
  const Before before{norm, eps, gate};
  return product(
      check, given, weight, scales, zeros, perm, blocks, bias, N, act_bits, before, add, true,
      [](Check&, QMatmulArgs&, const Before&) { return false; },
      [&](const Tensor& x) { return prepared(x, before, rms_norm_cpu, gate_halves_cpu); }, cpu::qmatmul_scratch_bytes,
      cpu::qmatmul);
}

#ifdef NYBBLE_CUDA
Tensor qmatmul_cuda(const Tensor& given, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                    const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias,
                    int64_t N, int64_t act_bits, const std::optional<Tensor>& norm, double eps, int64_t gate,
                    const std::optional<Tensor>& add, bool invariant) {
  Check check("qmatmul", true);
  const CudaScope scope(given);
  const Before before{norm, eps, gate};
  const auto prepares = [](Check& check, QMatmulArgs& args, const Before& before) {
    if (before.norm.has_value()) {
      args.norm_dtype = check.floats(*before.norm, "norm");
      check.shape(*before.norm, "norm", {"K"});
      check.contiguous(*before.norm, "norm");
      check.that(before.eps >= 0, "eps is ", before.eps, ", expected 0 or more");
      args.norm = before.norm->data_ptr();
      args.eps = static_cast<float>(before.eps);
    }
    args.gate = static_cast<int>(before.gate);
    return cuda::qmatmul_prepares(args);
  };
  return product(
      check, given, weight, scales, zeros, perm, blocks, bias, N, act_bits, before, add, invariant, prepares,
      [&](const Tensor& x) { return prepared(x, before, rms_norm_cuda, gate_halves_cuda); },
      cuda::qmatmul_scratch_bytes, [&](const QMatmulArgs& args) { return cuda::qmatmul(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
