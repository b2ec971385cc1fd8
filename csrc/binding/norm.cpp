// rms_norm and layer_norm: check, fill the arguments, call.
#include "binding/bindings.h"
#include "ops/norm.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// Checks everything and calls `kernel(args)`; one body for both norms and both devices.
template <typename Kernel>
Tensor norm(Check check, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
            Kernel kernel) {
  NormArgs args{};
  args.dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "D"});
  args.w_dtype = check.floats(weight, "weight");
  check.shape(weight, "weight", {"D"});
  check.contiguous(weight, "weight");
  if (bias.has_value()) {
    check.type(*bias, "bias", weight.scalar_type());
    check.shape(*bias, "bias", {"D"});
    check.contiguous(*bias, "bias");
  }
  check.that(eps >= 0, "eps is ", eps, ", expected 0 or more");
  const Rows rows(x);
  Tensor y = with_last(x, rows.D);
  if (rows.R * rows.D == 0) return y;
  args.x = rows.data();
  args.weight = weight.data_ptr();
  args.bias = pointer(bias);
  args.y = y.data_ptr();
  args.R = rows.R;
  args.D = rows.D;
  args.x_stride = rows.stride;
  args.eps = static_cast<float>(eps);
  check.done(kernel(args));
  return y;
}

}  // namespace

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps) {
  return norm(Check("rms_norm"), x, weight, std::nullopt, eps, cpu::rms_norm);
}

Tensor layer_norm_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps) {
  return norm(Check("layer_norm"), x, weight, bias, eps, cpu::layer_norm);
}

#ifdef NYBBLE_CUDA
Tensor rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps) {
  const CudaScope scope(x);
  return norm(Check("rms_norm", true), x, weight, std::nullopt, eps,
              [&](const NormArgs& args) { return cuda::rms_norm(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
