// quantize_columns, quantize_error and gptq_group_: check, fill the arguments, call.
#include "ops/quantize.h"

#include "binding/bindings.h"
#include "ops/gptq.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

void check_grid(const Check& check, int64_t zero, int64_t max_code) {
  check.that(max_code >= 1 && max_code <= 255, "max_code is ", max_code, ", expected 1 to 255");
  check.that(zero >= 0 && zero <= max_code, "zero is ", zero, ", expected 0 to max_code = ", max_code);
}

// float32, any strides; dense here.
Tensor vector(Check& check, const Tensor& t, const char* name, const char* letter) {
  check.type(t, name, ScalarType::Float);
  check.shape(t, name, {letter});
  return torch::stable::contiguous(t);
}

// A matrix that is written in place, row by row.
void written(Check& check, const Tensor& t, const char* name, ScalarType type, Letters letters) {
  check.type(t, name, type);
  check.shape(t, name, letters);
  check.distinct(t, name);
  if (t.numel() > 0) check.unit_stride(t, name);
}

// `kernel` is the op's on either device, here and below.
template <typename Kernel>
std::tuple<Tensor, Tensor> quantize_columns(Check check, const Tensor& x, const Tensor& scales, int64_t zero,
                                            int64_t max_code, Kernel kernel) {
  QuantizeColumnsArgs args{};
  check.type(x, "x", ScalarType::Float);
  check.shape(x, "x", {"R", "N"});
  const Tensor scale = vector(check, scales, "scales", "N");
  check_grid(check, zero, max_code);
  const Rows rows(x);
  Tensor codes = torch::stable::new_empty(x, {check["R"], check["N"]}, ScalarType::Byte);
  Tensor values = with_last(x, rows.D);
  if (x.numel() == 0) return {codes, values};
  args.x = static_cast<const float*>(rows.data());
  args.x_stride = rows.stride;
  args.scales = static_cast<const float*>(scale.data_ptr());
  args.zero = static_cast<float>(zero);
  args.last = static_cast<float>(max_code);
  args.codes = static_cast<uint8_t*>(codes.data_ptr());
  args.values = static_cast<float*>(values.data_ptr());
  args.R = rows.R;
  args.N = rows.D;
  check.done(kernel(args));
  return {codes, values};
}

template <typename Kernel>
Tensor quantize_error(Check check, const Tensor& x, const Tensor& scales, const Tensor& factors, int64_t zero,
                      int64_t max_code, double norm, Kernel kernel) {
  QuantizeErrorArgs args{};
  check.type(x, "x", ScalarType::Float);
  check.shape(x, "x", {"R", "N"});
  const Tensor scale = vector(check, scales, "scales", "N");
  const Tensor factor = vector(check, factors, "factors", "P");
  check_grid(check, zero, max_code);
  check.that(norm > 0 && norm <= 64, "norm is ", norm, ", expected more than 0, at most 64");
  const Rows rows(x);
  args.P = check["P"];
  args.N = check["N"];
  Tensor error = torch::stable::new_empty(x, {args.P, args.N});
  if (args.P * args.N == 0) return error;
  args.x = static_cast<const float*>(rows.data());
  args.x_stride = rows.stride;
  args.scales = static_cast<const float*>(scale.data_ptr());
  args.factors = static_cast<const float*>(factor.data_ptr());
  args.zero = static_cast<float>(zero);
  args.last = static_cast<float>(max_code);
  args.norm = static_cast<float>(norm);
  args.error = static_cast<float*>(error.data_ptr());
  args.R = check["R"];
  check.done(kernel(args));
  return error;
}

template <typename Kernel>
void gptq_group(Check check, const Tensor& weight, const Tensor& codes, const Tensor& error, const Tensor& cholesky,
                const Tensor& scales, int64_t zero, int64_t max_code, Kernel kernel) {
  GptqGroupArgs args{};
  written(check, weight, "weight", ScalarType::Float, {"T", "N"});
  written(check, codes, "codes", ScalarType::Byte, {"R", "N"});
  written(check, error, "error", ScalarType::Float, {"R", "N"});
  check.type(cholesky, "cholesky", ScalarType::Float);
  check.shape(cholesky, "cholesky", {"T", "T"});
  const Tensor scale = vector(check, scales, "scales", "N");
  check_grid(check, zero, max_code);
  args.T = check["T"];
  args.N = check["N"];
  args.R = check["R"];
  check.that(args.R <= args.T, "codes has ", args.R, " rows, expected at most the ", args.T, " of weight");
  // torch.linalg.cholesky gives columns side by side: only the rows that are read are worth a copy.
  Tensor rows_read = cholesky;
  const Rows upper(torch::stable::narrow(rows_read, 0, 0, args.R));
  args.cholesky = static_cast<const float*>(upper.data());
  args.cholesky_stride = upper.stride;
  for (int64_t r = 0; r < args.R && cholesky.is_cpu(); ++r) {
    const float pivot = args.cholesky[r * args.cholesky_stride + r];
    check.that(pivot > 0, "cholesky[", r, ", ", r, "] is ", pivot, ", expected more than 0");
  }
  if (args.R * args.N == 0) return;
  args.weight = static_cast<float*>(weight.data_ptr());
  args.weight_stride = weight.stride(0);
  args.codes = static_cast<uint8_t*>(codes.data_ptr());
  args.codes_stride = codes.stride(0);
  args.error = static_cast<float*>(error.data_ptr());
  args.error_stride = error.stride(0);
  args.scales = static_cast<const float*>(scale.data_ptr());
  args.zero = static_cast<float>(zero);
  args.last = static_cast<float>(max_code);
  check.done(kernel(args));
}

}  // namespace

std::tuple<Tensor, Tensor> quantize_columns_cpu(const Tensor& x, const Tensor& scales, int64_t zero, int64_t max_code) {
  return quantize_columns(Check("quantize_columns"), x, scales, zero, max_code, cpu::quantize_columns);
}

Tensor quantize_error_cpu(const Tensor& x, const Tensor& scales, const Tensor& factors, int64_t zero, int64_t max_code,
                          double norm) {
  return quantize_error(Check("quantize_error"), x, scales, factors, zero, max_code, norm, cpu::quantize_error);
}

void gptq_group_cpu(const Tensor& weight, const Tensor& codes, const Tensor& error, const Tensor& cholesky,
                    const Tensor& scales, int64_t zero, int64_t max_code) {
  gptq_group(Check("gptq_group_"), weight, codes, error, cholesky, scales, zero, max_code, cpu::gptq_group);
}

#ifdef NYBBLE_CUDA
std::tuple<Tensor, Tensor> quantize_columns_cuda(const Tensor& x, const Tensor& scales, int64_t zero,
                                                 int64_t max_code) {
  const CudaScope scope(x);
  return quantize_columns(Check("quantize_columns", true), x, scales, zero, max_code,
                          [&](const auto& args) { return cuda::quantize_columns(args, scope.stream()); });
}

Tensor quantize_error_cuda(const Tensor& x, const Tensor& scales, const Tensor& factors, int64_t zero, int64_t max_code,
                           double norm) {
  const CudaScope scope(x);
  return quantize_error(Check("quantize_error", true), x, scales, factors, zero, max_code, norm,
                        [&](const auto& args) { return cuda::quantize_error(args, scope.stream()); });
}

void gptq_group_cuda(const Tensor& weight, const Tensor& codes, const Tensor& error, const Tensor& cholesky,
                     const Tensor& scales, int64_t zero, int64_t max_code) {
  const CudaScope scope(weight);
  gptq_group(Check("gptq_group_", true), weight, codes, error, cholesky, scales, zero, max_code,
             [&](const auto& args) { return cuda::gptq_group(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
