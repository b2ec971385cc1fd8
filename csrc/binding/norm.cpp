// rms_norm, layer_norm and their forms in place: check, fill the arguments, call.
#include "ops/norm.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// Checks everything but the output and fills it in; what the four functions share.
NormArgs read(Check& check, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps) {
  NormArgs args{};
  args.dtype = args.y_dtype = check.floats(x, "x");
  args.w_dtype = check.floats(weight, "weight");
  const bool heads = weight.dim() == 2;
  if (heads) {
    check.shape(x, "x", {"...", "H", "D"});
    check.shape(weight, "weight", {"H", "D"});
  } else {
    check.shape(x, "x", {"...", "D"});
    check.shape(weight, "weight", {"D"});
  }
  check.contiguous(weight, "weight");
  if (bias.has_value()) {
    check.type(*bias, "bias", weight.scalar_type());
    if (heads)
      check.shape(*bias, "bias", {"H", "D"});
    else
      check.shape(*bias, "bias", {"D"});
    check.contiguous(*bias, "bias");
  }
  check.that(eps >= 0, "eps is ", eps, ", expected 0 or more");
  args.weight = weight.data_ptr();
  args.bias = pointer(bias);
  args.H = heads ? check["H"] : 1;
  args.eps = static_cast<float>(eps);
  return args;
}

// `kernel` is the norm of either kind on either device.
template <typename Kernel>
Tensor norm(Check check, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
            const std::optional<ScalarType>& dtype, Kernel kernel) {
  NormArgs args = read(check, x, weight, bias, eps);
  const Rows rows(x);
  const auto sizes = x.sizes();
  Tensor y = torch::stable::new_empty(x, std::vector<int64_t>(sizes.begin(), sizes.end()), dtype);
  args.y_dtype = check.floats(y, "dtype");
  if (rows.R * rows.D == 0) return y;
  args.x = rows.data();
  args.y = y.data_ptr();
  args.R = rows.R;
  args.D = args.y_stride = rows.D;
  args.x_stride = rows.stride;
  check.done(kernel(args));
  return y;
}

template <typename Kernel>
void norm_in_place(Check check, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                   Kernel kernel) {
  NormArgs args = read(check, x, weight, bias, eps);
  check.distinct(x, "x");
  const WritableRows rows(x);
  if (rows.R * rows.D == 0) return;
  args.x = args.y = rows.data();
  args.R = rows.R;
  args.D = rows.D;
  args.x_stride = args.y_stride = rows.stride;
  check.done(kernel(args));
  rows.write_back();
}

}  // namespace

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps, const std::optional<ScalarType>& dtype) {
  return norm(Check("rms_norm"), x, weight, std::nullopt, eps, dtype, cpu::rms_norm);
}

Tensor layer_norm_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                      const std::optional<ScalarType>& dtype) {
  return norm(Check("layer_norm"), x, weight, bias, eps, dtype, cpu::layer_norm);
}

void rms_norm_in_place_cpu(const Tensor& x, const Tensor& weight, double eps) {
  norm_in_place(Check("rms_norm_"), x, weight, std::nullopt, eps, cpu::rms_norm);
}

void layer_norm_in_place_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps) {
  norm_in_place(Check("layer_norm_"), x, weight, bias, eps, cpu::layer_norm);
}

#ifdef NYBBLE_CUDA
Tensor rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps, const std::optional<ScalarType>& dtype) {
  const CudaScope scope(x);
  return norm(Check("rms_norm", true), x, weight, std::nullopt, eps, dtype,
              [&](const NormArgs& args) { return cuda::rms_norm(args, scope.stream()); });
}

void rms_norm_in_place_cuda(const Tensor& x, const Tensor& weight, double eps) {
  const CudaScope scope(x);
  norm_in_place(Check("rms_norm_", true), x, weight, std::nullopt, eps,
                [&](const NormArgs& args) { return cuda::rms_norm(args, scope.stream()); });
}

Tensor layer_norm_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                       const std::optional<ScalarType>& dtype) {
  const CudaScope scope(x);
  return norm(Check("layer_norm", true), x, weight, bias, eps, dtype,
              [&](const NormArgs& args) { return cuda::layer_norm(args, scope.stream()); });
}

void layer_norm_in_place_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps) {
  const CudaScope scope(x);
  norm_in_place(Check("layer_norm_", true), x, weight, bias, eps,
                [&](const NormArgs& args) { return cuda::layer_norm(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
