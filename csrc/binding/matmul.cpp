// matmul: check, fill the arguments, call.
#include "ops/matmul.h"

#include "binding/bindings.h"

namespace nybble::binding {

Tensor matmul_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  Check check("matmul");
  MatmulArgs args{};
  args.x_dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "K"});
  args.w_dtype = check.floats(weight, "weight");
  check.shape(weight, "weight", {"N", "K"});
  check.contiguous(weight, "weight");
  if (bias.has_value()) {
    check.type(*bias, "bias", weight.scalar_type());
    check.shape(*bias, "bias", {"N"});
    check.contiguous(*bias, "bias");
  }
  const Rows rows(x);
  Tensor y = with_last(x, check["N"]);
  args.x = rows.data();
  args.x_stride = rows.stride;
  args.weight = weight.data_ptr();
  args.bias = pointer(bias);
  args.y = y.data_ptr();
  args.M = rows.R;
  args.N = check["N"];
  args.K = rows.D;
  if (args.M * args.N == 0) return y;
  check.done(cpu::matmul(args));
  return y;
}

}  // namespace nybble::binding
