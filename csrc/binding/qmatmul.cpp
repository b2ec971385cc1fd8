// qmatmul: check, fill the arguments, call. Everything the kernels index with is checked on every call: the block table and
// the permutation are small beside the product, and a wrong index would read outside the tensors.
#include "ops/qmatmul.h"

#include "binding/bindings.h"

namespace nybble::binding {
namespace {

// Bytes of one column block. Refuses widths and groups that the layout does not have.
int64_t column_block_bytes(const Check& check, const int32_t* blocks, int64_t KB, int64_t G) {
  int64_t bytes = 0;
  for (int64_t kb = 0; kb < KB; ++kb) {
    const int32_t bits = blocks[2 * kb], group = blocks[2 * kb + 1];
    const bool known = bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8;
    check.that(known, "blocks[", kb, "] has ", bits, " bits, expected 2, 3, 4, 5, 6 or 8");
    check.that(group >= 0 && group < G, "blocks[", kb, "] has group ", group, ", expected 0 to ", G - 1);
    bytes += 64 * bits;
  }
  return bytes;
}

// What is done to x before the product.
Tensor prepared(const Check& check, const Tensor& x, const std::optional<Tensor>& norm, double eps, int64_t gate) {
  check.that(!norm.has_value() || gate < 0, "norm and gate are both given, expected one of them");
  check.that(x.dim() >= 1, "x has shape [], expected [..., K]");
  if (norm.has_value()) return rms_norm_cpu(x, *norm, eps);
  return gate < 0 ? x : gate_halves_cpu("qmatmul", x, gate);
}

}  // namespace

Tensor qmatmul_cpu(const Tensor& given, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias, int64_t N,
                   int64_t act_bits, const std::optional<Tensor>& norm, double eps, int64_t gate,
                   const std::optional<Tensor>& add) {
  Check check("qmatmul");
  const Tensor x = prepared(check, given, norm, eps, gate);
  QMatmulArgs args{};
  args.x_dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "K"});
  check.that(act_bits == 8 || act_bits == 16 || act_bits == 32, "act_bits is ", act_bits, ", expected 8, 16 or 32");
  check.that(N >= 0 && N <= INT64_MAX - kPackColumns, "N is ", N, ", expected 0 or more");
  check.let("N", N, "the argument N");
  const int64_t NB = (N + kPackColumns - 1) / kPackColumns;
  check.let("N/16", NB, "the argument N");
  check.let("16", kPackColumns, "the layout");
  check.let("2", 2, "the layout");

  check.type(scales, "scales", ScalarType::Half);
  check.shape(scales, "scales", {"N/16", "G", "16"});
  check.contiguous(scales, "scales");
  if (zeros.has_value()) {
    check.type(*zeros, "zeros", ScalarType::Float);
    check.shape(*zeros, "zeros", {"N/16", "G", "16"});
    check.contiguous(*zeros, "zeros");
  }

  check.on_cpu(blocks, "blocks", ScalarType::Int);
  check.shape(blocks, "blocks", {"KB", "2"});
  check.contiguous(blocks, "blocks");
  const int64_t K = check["K"], KB = check["KB"], G = check["G"];
  const auto* table = static_cast<const int32_t*>(blocks.data_ptr());
  const int64_t bytes = column_block_bytes(check, table, KB, G);
  check.type(weight, "weight", ScalarType::Byte);
  check.contiguous(weight, "weight");
  check.that(weight.numel() % (NB > 0 ? NB : 1) == 0 && weight.numel() / (NB > 0 ? NB : 1) == (NB > 0 ? bytes : 0),
             "weight has ", weight.numel(), " bytes, expected ", NB, " column blocks of ", bytes, " bytes");

  const int64_t rows_packed = KB * kPackRows;
  if (perm.has_value()) {
    check.let("KB*32", rows_packed, "blocks");
    check.type(*perm, "perm", ScalarType::Int);
    check.shape(*perm, "perm", {"KB*32"});
    check.contiguous(*perm, "perm");
    check.each<int32_t>(*perm, "perm", "-1 (padding) or 0 to K - 1", [K](int32_t k) { return k >= -1 && k < K; });
  } else {
    check.that(rows_packed >= K, "x has K = ", K, " inputs, but blocks hold only ", rows_packed, " rows");
  }
  if (bias.has_value()) {
    check.type(*bias, "bias", x.scalar_type());
    check.shape(*bias, "bias", {"N"});
    check.contiguous(*bias, "bias");
  }

  Tensor y = with_last(x, N);
  const Rows rows(x), added(add.has_value() ? *add : y);
  if (add.has_value()) {
    check.type(*add, "add", x.scalar_type());
    check.same_shape(*add, "add", y, "the result");
    args.add = added.data();
    args.add_stride = added.stride;
  }
  args.x = rows.data();
  args.x_stride = rows.stride;
  args.weight = static_cast<const uint8_t*>(weight.data_ptr());
  args.scales = static_cast<const uint16_t*>(scales.data_ptr());
  args.zeros = static_cast<const float*>(pointer(zeros));
  args.perm = static_cast<const int32_t*>(pointer(perm));
  args.blocks = table;
  args.bias = pointer(bias);
  args.y = y.data_ptr();
  args.M = rows.R;
  args.N = N;
  args.K = K;
  args.KB = KB;
  args.G = G;
  args.act_bits = static_cast<int>(act_bits);
  if (args.M * N == 0) return y;
  const Scratch scratch(x, cpu::qmatmul_scratch_bytes(args));
  args.scratch = scratch.data();
  check.done(cpu::qmatmul(args));
  return y;
}

}  // namespace nybble::binding
