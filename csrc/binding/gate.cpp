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
  const auto a = gate.sizes(), b = up.sizes();
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = a[i] == b[i];
  check.that(same, "gate and up have different shapes; expected the same");
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

Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up) { return gated("silu_mul", Act::silu, gate, up); }

Tensor gelu_mul_cpu(const Tensor& gate, const Tensor& up, bool tanh) {
  return gated("gelu_mul", tanh ? Act::gelu_tanh : Act::gelu, gate, up);
}

}  // namespace nybble::binding
