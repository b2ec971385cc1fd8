// embedding: check, fill the arguments, call. The kernel itself refuses ids outside the table.
#include "ops/embedding.h"

#include "binding/bindings.h"

namespace nybble::binding {

Tensor embedding_cpu(const Tensor& ids, const Tensor& weight, ScalarType dtype) {
  Check check("embedding");
  EmbeddingArgs args{};
  check.type(ids, "ids", ScalarType::Long);
  args.w_dtype = check.floats(weight, "weight");
  check.shape(weight, "weight", {"V", "D"});
  check.contiguous(weight, "weight");
  const auto sizes = ids.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.push_back(check["D"]);
  Tensor y = new_cpu(shape, dtype);
  args.y_dtype = check.floats(y, "dtype");
  const Tensor given = dense(ids);
  args.ids = static_cast<const int64_t*>(given.data_ptr());
  args.weight = weight.data_ptr();
  args.y = y.data_ptr();
  args.R = ids.numel();
  args.V = check["V"];
  args.D = check["D"];
  if (args.R == 0) return y;
  check.done(cpu::embedding(args));
  return y;
}

}  // namespace nybble::binding
