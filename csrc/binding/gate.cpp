// silu_mul and gelu_mul: check, fill the arguments, call.
#include "ops/gate.h"

#include "binding/bindings.h"

namespace nybble::binding {
namespace {

Tensor gated(const char* op, Act act, const Tensor& gate, const Tensor& up) {
  Check check(op);
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
  check.done(cpu::gate(args));
  return y;
}

}  // namespace

Tensor gate_halves_cpu(const char* op, const Tensor& x, int64_t act) {
  Check check(op);
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
  check.done(cpu::gate(args));
  return y;
}

Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up) { return gated("silu_mul", Act::silu, gate, up); }

Tensor gelu_mul_cpu(const Tensor& gate, const Tensor& up, bool tanh) {
  return gated("gelu_mul", tanh ? Act::gelu_tanh : Act::gelu, gate, up);
}

}  // namespace nybble::binding
