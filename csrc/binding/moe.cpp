// moe_route: check, fill the arguments, call.
#include "ops/moe.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernel` is the routing on either device.
template <typename Kernel>
std::tuple<Tensor, Tensor> routed(Check check, const Tensor& logits, int64_t k, bool renormalize, Kernel kernel) {
  MoeRouteArgs args{};
  args.dtype = check.floats(logits, "logits");
  check.shape(logits, "logits", {"...", "E"});
  args.E = check["E"];
  check.that(k >= 1 && k <= args.E, "k is ", k, ", expected 1 to E = ", args.E, " from logits");
  const Rows rows(logits);
  const auto sizes = logits.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = k;
  Tensor weights = torch::stable::new_empty(logits, shape, ScalarType::Float);
  Tensor experts = torch::stable::new_empty(logits, shape, ScalarType::Long);
  if (rows.R == 0) return {weights, experts};
  args.logits = rows.data();
  args.logits_stride = rows.stride;
  args.weights = static_cast<float*>(weights.data_ptr());
  args.experts = static_cast<int64_t*>(experts.data_ptr());
  args.renormalize = renormalize;
  args.R = rows.R;
  args.k = k;
  check.done(kernel(args));
  return {weights, experts};
}

}  // namespace

std::tuple<Tensor, Tensor> moe_route_cpu(const Tensor& logits, int64_t k, bool renormalize) {
  return routed(Check("moe_route"), logits, k, renormalize, cpu::moe_route);
}

#ifdef NYBBLE_CUDA
std::tuple<Tensor, Tensor> moe_route_cuda(const Tensor& logits, int64_t k, bool renormalize) {
  const CudaScope scope(logits);
  return routed(Check("moe_route", true), logits, k, renormalize,
                [&](const MoeRouteArgs& args) { return cuda::moe_route(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
