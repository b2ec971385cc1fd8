// embedding: check, fill the arguments, call. The kernel itself meets ids outside the table: the CPU's refuses them,
// the GPU's gives NaN.
#include "ops/embedding.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernel` is the look-up on either device.
template <typename Kernel>
Tensor looked_up(Check check, const Tensor& ids, const Tensor& weight, ScalarType dtype, Kernel kernel) {
  EmbeddingArgs args{};
  check.type(ids, "ids", ScalarType::Long);
  args.w_dtype = check.floats(weight, "weight");
  check.shape(weight, "weight", {"V", "D"});
  check.contiguous(weight, "weight");
  const auto sizes = ids.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.push_back(check["D"]);
  Tensor y = new_beside(weight, shape, dtype);
  args.y_dtype = check.floats(y, "dtype");
  const Tensor given = dense(ids);
  args.ids = static_cast<const int64_t*>(given.data_ptr());
  args.weight = weight.data_ptr();
  args.y = y.data_ptr();
  args.R = ids.numel();
  args.V = check["V"];
  args.D = check["D"];
  if (args.R == 0) return y;
  check.done(kernel(args));
  return y;
}

}  // namespace

Tensor embedding_cpu(const Tensor& ids, const Tensor& weight, ScalarType dtype) {
  return looked_up(Check("embedding"), ids, weight, dtype, cpu::embedding);
}

#ifdef NYBBLE_CUDA
Tensor embedding_cuda(const Tensor& ids, const Tensor& weight, ScalarType dtype) {
  const CudaScope scope(ids);
  return looked_up(Check("embedding", true), ids, weight, dtype,
                   [&](const EmbeddingArgs& args) { return cuda::embedding(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
