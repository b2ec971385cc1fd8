// moe_route: check, fill the arguments, call.
#include "ops/moe.h"

#include "binding/bindings.h"

namespace nybble::binding {

std::tuple<Tensor, Tensor> moe_route_cpu(const Tensor& logits, int64_t k, bool renormalize) {
  Check check("moe_route");
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
  check.done(cpu::moe_route(args));
  return {weights, experts};
}

}  // namespace nybble::binding
