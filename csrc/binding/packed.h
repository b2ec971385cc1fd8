// A packed matrix's tensors at the border. Everything the kernels index with is checked on every call: the block table
// and the permutation are small beside the matrix, and a wrong index would read or write outside the tensors.
#pragma once
#include "binding/check.h"
#include "ops/qmatmul.h"

namespace nybble::binding {

struct Packed {
  const uint8_t* weight;
  const uint16_t* scales;
  const float* zeros;
  const int32_t *perm, *blocks;
  int64_t KB, G;
};

// Bytes of one column block. Refuses widths and groups that the layout does not have.
inline int64_t column_block_bytes(const Check& check, const int32_t* blocks, int64_t KB, int64_t G) {
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

// Binds N and the layout's letters. K and N are the matrix's true sizes.
inline Packed check_packed(Check& check, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                           const std::optional<Tensor>& perm, const Tensor& blocks, int64_t K, int64_t N) {
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
  const int64_t KB = check["KB"], G = check["G"];
  const auto* table = static_cast<const int32_t*>(blocks.data_ptr());
  const int64_t bytes = column_block_bytes(check, table, KB, G);
  check.type(weight, "weight", ScalarType::Byte);
  check.contiguous(weight, "weight");
  check.that(weight.numel() % (NB > 0 ? NB : 1) == 0 && weight.numel() / (NB > 0 ? NB : 1) == (NB > 0 ? bytes : 0),
             "weight has ", weight.numel(), " bytes, expected ", NB, " column blocks of ", bytes, " bytes");

  check.that(!weight.is_cuda() || reinterpret_cast<uintptr_t>(weight.data_ptr()) % 16 == 0,
             "weight must start at a multiple of 16 bytes on a GPU; clone it first");

  const int64_t rows_packed = KB * kPackRows;
  if (perm.has_value()) {
    check.let("KB*32", rows_packed, "blocks");
    check.type(*perm, "perm", ScalarType::Int);
    check.shape(*perm, "perm", {"KB*32"});
    check.contiguous(*perm, "perm");
    check.each<int32_t>(*perm, "perm", "-1 (padding) or 0 to K - 1", [K](int32_t k) { return k >= -1 && k < K; });
  } else {
    check.that(rows_packed >= K, "K is ", K, ", but blocks hold only ", rows_packed, " rows");
  }
  return {static_cast<const uint8_t*>(weight.data_ptr()),
          static_cast<const uint16_t*>(scales.data_ptr()),
          static_cast<const float*>(pointer(zeros)),
          static_cast<const int32_t*>(pointer(perm)),
          table,
          KB,
          G};
}

}  // namespace nybble::binding
