// quantize_int8, layer_norm_int8 and int8_matmul: check, fill the arguments, call.
#include "binding/bindings.h"
#include "ops/int8_matmul.h"
#include "ops/norm.h"
#include "ops/quantize_int8.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// New codes int8 [..., D] and scales float32 [...] for x [..., D].
std::tuple<Tensor, Tensor> codes_and_scales(const Tensor& x) {
  const auto sizes = x.sizes();
  const std::vector<int64_t> all(sizes.begin(), sizes.end()), leading(sizes.begin(), sizes.end() - 1);
  return {torch::stable::new_empty(x, all, ScalarType::Char), torch::stable::new_empty(x, leading, ScalarType::Float)};
}

// x_scale has one number for each row of x.
void one_a_row(const Check& check, const Tensor& x, const Tensor& x_scale) {
  const auto a = x.sizes(), b = x_scale.sizes();
  bool same = b.size() + 1 == a.size();
  for (size_t i = 0; same && i < b.size(); ++i) same = a[i] == b[i];
  check.that(same, "x_scale must have x's shape without its last dimension");
}

DType float_type(const Check& check, ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      break;
  }
  check.that(false, "dtype is ", dtype_name(type), ", expected float32, float16 or bfloat16");
  return DType::f32;
}

// `kernel` is quantize_int8 on either device.
template <typename Kernel>
std::tuple<Tensor, Tensor> quantized(Check check, const Tensor& x, Kernel kernel) {
  QuantizeArgs args{};
  args.dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "D"});
  const Rows rows(x);
  auto [codes, scales] = codes_and_scales(x);
  if (rows.R == 0) return {codes, scales};
  args.x = rows.data();
  args.codes = static_cast<int8_t*>(codes.data_ptr());
  args.scales = static_cast<float*>(scales.data_ptr());
  args.R = rows.R;
  args.D = rows.D;
  args.x_stride = rows.stride;
  check.done(kernel(args));
  return {codes, scales};
}

// `kernel` is layer_norm_int8, `quantize` quantize_int8, on either device.
template <typename Kernel, typename Quantize>
std::tuple<Tensor, Tensor> normed_and_quantized(Check check, const Tensor& x, const Tensor& weight,
                                                const std::optional<Tensor>& bias, double eps, Kernel kernel,
                                                Quantize quantize) {
  NormInt8Args args{};
  args.norm.dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "D"});
  args.norm.w_dtype = check.floats(weight, "weight");
  check.shape(weight, "weight", {"D"});
  check.contiguous(weight, "weight");
  if (bias.has_value()) {
    check.type(*bias, "bias", weight.scalar_type());
    check.shape(*bias, "bias", {"D"});
    check.contiguous(*bias, "bias");
  }
  check.that(eps >= 0, "eps is ", eps, ", expected 0 or more");
  const Rows rows(x);
  auto [codes, scales] = codes_and_scales(x);
  if (rows.R == 0) return {codes, scales};
  args.norm.x = rows.data();
  args.norm.weight = weight.data_ptr();
  args.norm.bias = pointer(bias);
  args.norm.R = rows.R;
  args.norm.D = rows.D;
  args.norm.x_stride = rows.stride;
  args.norm.eps = static_cast<float>(eps);
  args.codes = static_cast<int8_t*>(codes.data_ptr());
  args.scales = static_cast<float*>(scales.data_ptr());
  check.done(rows.D == 0 ? quantize(QuantizeArgs{args.norm.x, args.codes, args.scales, args.norm.dtype, rows.R, 0, 0})
                         : kernel(args));
  return {codes, scales};
}

}  // namespace

std::tuple<Tensor, Tensor> quantize_int8_cpu(const Tensor& x) {
  return quantized(Check("quantize_int8"), x, cpu::quantize_int8);
}

std::tuple<Tensor, Tensor> layer_norm_int8_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                               double eps) {
  return normed_and_quantized(Check("layer_norm_int8"), x, weight, bias, eps, cpu::layer_norm_int8, cpu::quantize_int8);
}

#ifdef NYBBLE_CUDA
std::tuple<Tensor, Tensor> quantize_int8_cuda(const Tensor& x) {
  const CudaScope scope(x);
  return quantized(Check("quantize_int8", true), x,
                   [&](const QuantizeArgs& args) { return cuda::quantize_int8(args, scope.stream()); });
}

std::tuple<Tensor, Tensor> layer_norm_int8_cuda(const Tensor& x, const Tensor& weight,
                                                const std::optional<Tensor>& bias, double eps) {
  const CudaScope scope(x);
  return normed_and_quantized(
      Check("layer_norm_int8", true), x, weight, bias, eps,
      [&](const NormInt8Args& args) { return cuda::layer_norm_int8(args, scope.stream()); },
      [&](const QuantizeArgs& args) { return cuda::quantize_int8(args, scope.stream()); });
}
#endif

namespace {

template <typename Kernel, typename ScratchSize>
Tensor int8_matmul(Check check, const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                   const std::optional<Tensor>& bias, ScalarType dtype, Kernel kernel, ScratchSize size) {
  Int8MatmulArgs args{};
  check.type(x, "x", ScalarType::Char);
  check.shape(x, "x", {"...", "K"});
  check.type(x_scale, "x_scale", ScalarType::Float);
  one_a_row(check, x, x_scale);
  check.contiguous(x_scale, "x_scale");
  check.type(weight, "weight", ScalarType::Char);
  check.shape(weight, "weight", {"N", "K"});
  check.contiguous(weight, "weight");
  check.type(w_scale, "w_scale", ScalarType::Float);
  check.shape(w_scale, "w_scale", {"N"});
  check.contiguous(w_scale, "w_scale");
  if (bias.has_value()) {
    check.type(*bias, "bias", ScalarType::Float);
    check.shape(*bias, "bias", {"N"});
    check.contiguous(*bias, "bias");
  }
  check.that(check["K"] <= kInt8MaxK, "K is ", check["K"], ", expected at most ", kInt8MaxK);
  args.y_dtype = float_type(check, dtype);
  const Rows rows(x);
  const auto sizes = x.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = check["N"];
  Tensor y = torch::stable::new_empty(x, shape, dtype);
  if (rows.R * check["N"] == 0) return y;
  args.x = static_cast<const int8_t*>(rows.data());
  args.x_stride = rows.stride;
  args.x_scale = static_cast<const float*>(x_scale.data_ptr());
  args.weight = static_cast<const int8_t*>(weight.data_ptr());
  args.w_scale = static_cast<const float*>(w_scale.data_ptr());
  args.bias = static_cast<const float*>(pointer(bias));
  args.y = y.data_ptr();
  args.M = rows.R;
  args.N = check["N"];
  args.K = rows.D;
  const Scratch scratch(x, size(args) * int64_t{sizeof(int32_t)});
  args.scratch = static_cast<int32_t*>(scratch.data());
  check.done(kernel(args));
  return y;
}

}  // namespace

Tensor int8_matmul_cpu(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                       const std::optional<Tensor>& bias, ScalarType dtype) {
  return int8_matmul(Check("int8_matmul"), x, x_scale, weight, w_scale, bias, dtype, cpu::int8_matmul,
                     cpu::int8_matmul_scratch);
}

#ifdef NYBBLE_CUDA
Tensor int8_matmul_cuda(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                        const std::optional<Tensor>& bias, ScalarType dtype) {
  const CudaScope scope(x);
  return int8_matmul(
      Check("int8_matmul", true), x, x_scale, weight, w_scale, bias, dtype,
      [&](const Int8MatmulArgs& args) { return cuda::int8_matmul(args, scope.stream()); }, cuda::int8_matmul_scratch);
}
#endif

}  // namespace nybble::binding
