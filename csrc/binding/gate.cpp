// silu_mul, gelu_mul and the gating of one tensor's halves: check, fill the arguments, call.
#include "ops/gate.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernel` is the gate on either device.
template <typename Kernel>
Tensor gated(Check check, Act act, const Tensor& gate, const Tensor& up, Kernel kernel) {
  GateArgs args{};
  args.dtype = check.floats(gate, "gate");
  check.type(up, "up", gate.scalar_type());
  check.shape(gate, "gate", {"...", "D"});
  check.same_shape(up, "up", gate, "gate");
  const Rows gates(gate), ups(up);
  Tensor y = with_last(gate, gates.D);
  if (gates.R * gates.D == 0) return y;
  args.gate = gates.data();
  args.up = ups.data();
  args.y = y.data_ptr();
  args.act = act;
  args.R = gates.R;
  args.D = gates.D;
  args.gate_stride = gates.stride;
  args.up_stride = ups.stride;
  check.done(kernel(args));
  return y;
}

template <typename Kernel>
Tensor gated_halves(Check check, const Tensor& x, int64_t act, Kernel kernel) {
  check.that(act >= 0 && act <= int64_t(Act::gelu_tanh), "gate is ", act,
             ", expected 0 (silu), 1 (gelu) or 2 (gelu by tanh)");
  GateArgs args{};
  args.dtype = check.floats(x, "x");
  const Rows rows(x);
  check.that(rows.D % 2 == 0, "x has ", rows.D, " columns, expected a gate and as many to be gated");
  Tensor y = with_last(x, rows.D / 2);
  if (y.numel() == 0) return y;
  args.gate = rows.data();
  args.up = static_cast<const char*>(rows.data()) + rows.D / 2 * x.element_size();
  args.y = y.data_ptr();
  args.act = static_cast<Act>(act);
  args.R = rows.R;
  args.D = rows.D / 2;
  args.gate_stride = args.up_stride = rows.stride;
  check.done(kernel(args));
  return y;
}

Act gelu_form(bool tanh) { return tanh ? Act::gelu_tanh : Act::gelu; }

}  // namespace

Tensor gate_halves_cpu(const char* op, const Tensor& x, int64_t act) {
  return gated_halves(Check(op), x, act, cpu::gate);
}

Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up) {
  return gated(Check("silu_mul"), Act::silu, gate, up, cpu::gate);
}

Tensor gelu_mul_cpu(const Tensor& gate, const Tensor& up, bool tanh) {
  return gated(Check("gelu_mul"), gelu_form(tanh), gate, up, cpu::gate);
}

#ifdef NYBBLE_CUDA
Tensor gate_halves_cuda(const char* op, const Tensor& x, int64_t act) {
  const CudaScope scope(x);
  return gated_halves(Check(op, true), x, act, [&](const GateArgs& args) { return cuda::gate(args, scope.stream()); });
}

Tensor silu_mul_cuda(const Tensor& gate, const Tensor& up) {
  const CudaScope scope(gate);
  return gated(Check("silu_mul", true), Act::silu, gate, up,
               [&](const GateArgs& args) { return cuda::gate(args, scope.stream()); });
}

Tensor gelu_mul_cuda(const Tensor& gate, const Tensor& up, bool tanh) {
  const CudaScope scope(gate);
  return gated(Check("gelu_mul", true), gelu_form(tanh), gate, up,
               [&](const GateArgs& args) { return cuda::gate(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
