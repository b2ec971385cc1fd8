// rope_: check, fill the arguments, call.
#include "ops/rope.h"

#include "binding/bindings.h"

namespace nybble::binding {

void rope_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox) {
  Check check("rope_");
  RopeArgs args{};
  args.dtype = check.floats(x, "x");
  check.shape(x, "x", {"B", "T", "H", "D"});
  check.unit_stride(x, "x");
  check.distinct(x, "x");
  check.type(cos, "cos", ScalarType::Float);
  check.shape(cos, "cos", {"P", "R/2"});
  check.contiguous(cos, "cos");
  check.type(sin, "sin", ScalarType::Float);
  check.shape(sin, "sin", {"P", "R/2"});
  check.contiguous(sin, "sin");
  check.type(positions, "positions", ScalarType::Long);
  check.shape(positions, "positions", {"B", "T"});
  const Tensor place = torch::stable::contiguous(positions);
  const int64_t P = check["P"], R = 2 * check["R/2"], D = check["D"];
  check.that(R <= D, "cos turns R = ", R, " channels, but x has only D = ", D);
  check.each<int64_t>(place, "positions", "0 to P - 1, the rows of cos", [P](int64_t p) { return p >= 0 && p < P; });
  args.x = x.data_ptr();
  args.cos = static_cast<const float*>(cos.data_ptr());
  args.sin = static_cast<const float*>(sin.data_ptr());
  args.positions = static_cast<const int64_t*>(place.data_ptr());
  args.B = check["B"];
  args.T = check["T"];
  args.H = check["H"];
  args.D = D;
  args.R = R;
  args.P = P;
  args.stride_b = x.stride(0);
  args.stride_t = x.stride(1);
  args.stride_h = x.stride(2);
  args.neox = neox;
  if (x.numel() == 0 || R == 0) return;
  check.done(cpu::rope(args));
}

}  // namespace nybble::binding
