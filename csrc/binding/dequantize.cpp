// dequantize: check, fill the arguments, call.
#include "ops/dequantize.h"

#include "binding/bindings.h"
#include "binding/packed.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// Every row of the result is written once, by one thread.
void check_order(const Check& check, const int32_t* perm, int64_t rows, int64_t K) {
  std::vector<bool> seen(static_cast<size_t>(K));
  int64_t found = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (perm[r] < 0) continue;
    const auto k = static_cast<size_t>(perm[r]);
    check.that(!seen[k], "perm holds ", k, " twice");
    seen[k] = true;
    ++found;
  }
  check.that(found == K, "perm holds ", found, " of K = ", K, " inputs, expected each once");
}

// `kernel` is that of the device.
template <typename Kernel>
Tensor run(Check check, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
           const std::optional<Tensor>& perm, const Tensor& blocks, int64_t K, int64_t N, ScalarType dtype,
           Kernel kernel) {
  check.that(K >= 0, "K is ", K, ", expected 0 or more");
  const Packed packed = check_packed(check, weight, scales, zeros, perm, blocks, K, N);
  // K may come from nowhere but the caller: it must be small before memory is taken for it.
  check.that(K <= packed.KB * kPackRows, "K is ", K, ", but blocks hold only ", packed.KB * kPackRows, " rows");
  if (perm.has_value() && perm->is_cpu()) check_order(check, packed.perm, packed.KB * kPackRows, K);

  Tensor y = torch::stable::new_empty(weight, {K, N}, dtype);
  DequantizeArgs args{};
  args.dtype = check.floats(y, "dtype");
  args.weight = packed.weight;
  args.scales = packed.scales;
  args.zeros = packed.zeros;
  args.perm = packed.perm;
  args.blocks = packed.blocks;
  args.y = y.data_ptr();
  args.K = K;
  args.N = N;
  args.KB = packed.KB;
  args.G = packed.G;
  if (K * N == 0) return y;
  check.done(kernel(args));
  return y;
}

}  // namespace

Tensor dequantize_cpu(const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                      const std::optional<Tensor>& perm, const Tensor& blocks, int64_t K, int64_t N, ScalarType dtype) {
  return run(Check("dequantize"), weight, scales, zeros, perm, blocks, K, N, dtype, cpu::dequantize);
}

#ifdef NYBBLE_CUDA
Tensor dequantize_cuda(const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                       const std::optional<Tensor>& perm, const Tensor& blocks, int64_t K, int64_t N,
                       ScalarType dtype) {
  const CudaScope scope(weight);
  return run(Check("dequantize", true), weight, scales, zeros, perm, blocks, K, N, dtype,
             [&](const DequantizeArgs& args) { return cuda::dequantize(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
