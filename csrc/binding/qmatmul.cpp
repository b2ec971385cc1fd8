// qmatmul: check, fill the arguments, call.
#include "ops/qmatmul.h"

#include "binding/bindings.h"
#include "binding/packed.h"

namespace nybble::binding {

Tensor qmatmul_cpu(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias,
                   int64_t N, int64_t act_bits) {
  Check check("qmatmul");
  QMatmulArgs args{};
  args.x_dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "K"});
  check.that(act_bits == 8 || act_bits == 16 || act_bits == 32, "act_bits is ", act_bits, ", expected 8, 16 or 32");
  const int64_t K = check["K"];
  const Packed packed = check_packed(check, weight, scales, zeros, perm, blocks, K, N);
  if (bias.has_value()) {
    check.type(*bias, "bias", x.scalar_type());
    check.shape(*bias, "bias", {"N"});
    check.contiguous(*bias, "bias");
  }

  const Rows rows(x);
  Tensor y = with_last(x, N);
  args.x = rows.data();
  args.x_stride = rows.stride;
  args.weight = packed.weight;
  args.scales = packed.scales;
  args.zeros = packed.zeros;
  args.perm = packed.perm;
  args.blocks = packed.blocks;
  args.bias = pointer(bias);
  args.y = y.data_ptr();
  args.M = rows.R;
  args.N = N;
  args.K = K;
  args.KB = packed.KB;
  args.G = packed.G;
  args.act_bits = static_cast<int>(act_bits);
  if (args.M * N == 0) return y;
  const Scratch scratch(x, cpu::qmatmul_scratch_bytes(args));
  args.scratch = scratch.data();
  check.done(cpu::qmatmul(args));
  return y;
}

}  // namespace nybble::binding
