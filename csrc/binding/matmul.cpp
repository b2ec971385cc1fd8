// matmul: check, fill the arguments, call.
#include "ops/matmul.h"

#include <array>

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// What a product is made of, and its result, yet to be written.
struct Product {
  MatmulArgs args;
  Rows rows;
  Tensor y;
};

Product read(Check& check, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
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
  const Tensor y = with_last(x, check["N"]);
  args.x = rows.data();
  args.x_stride = rows.stride;
  args.weight = weight.data_ptr();
  args.bias = pointer(bias);
  args.y = y.data_ptr();
  args.M = rows.R;
  args.N = check["N"];
  args.K = rows.D;
  return {args, rows, y};
}

#ifdef NYBBLE_CUDA
// Torch's own product. With `out` given it is left as it is by autocast, which would change the dtypes.
void library_product(const Product& p, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const MatmulArgs& a = p.args;
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(x.dim() == 2 ? x : torch::stable::reshape(x, {a.M, a.K})),
      torch::stable::detail::from(weight), torch::stable::detail::from(bias),
      torch::stable::detail::from(x.dim() == 2 ? p.y : torch::stable::reshape(p.y, {a.M, a.N}))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back what the call returned
}
#endif

}  // namespace

Tensor matmul_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  Check check("matmul");
  const Product p = read(check, x, weight, bias);
  if (p.y.numel() > 0) check.done(cpu::matmul(p.args));
  return p.y;
}

#ifdef NYBBLE_CUDA
Tensor matmul_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  Check check("matmul", true);
  const CudaScope scope(x);
  const Product p = read(check, x, weight, bias);
  if (p.y.numel() == 0) return p.y;
  if (cuda::matmul_by_library(p.args))
    library_product(p, x, weight, bias);
  else
    check.done(cuda::matmul(p.args, scope.stream()));
  return p.y;
}
#endif

}  // namespace nybble::binding
