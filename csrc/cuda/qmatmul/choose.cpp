// Which strategy serves a product: the first whose predicate says yes.
#include "cuda/qmatmul/qmatmul.h"

namespace nybble::cuda {

int64_t qmatmul_scratch_bytes(const QMatmulArgs& a) {
  if (prefers_wide(a)) return qmatmul_wide_scratch_bytes(a);
  if (supports_few(a)) return qmatmul_few_scratch_bytes(a);
  return supports_skinny(a) ? 0 : qmatmul_simt_scratch_bytes(a);
}

bool qmatmul_prepares(const QMatmulArgs& a) {
  if (prefers_wide(a)) return false;
  if (supports_few(a)) return few_prepares(a);
  return supports_skinny(a) && skinny_prepares(a);
}

Status qmatmul(const QMatmulArgs& a, Stream stream) {
  if (a.K > INT32_MAX - 32 || a.N > INT32_MAX - 32) return {"qmatmul: K and N are limited to 2^31 - 33"};
  if (prefers_wide(a)) return qmatmul_wide(a, stream);
  if (supports_few(a)) return qmatmul_few(a, stream);
  if (supports_skinny(a)) return qmatmul_skinny(a, stream);
  return qmatmul_simt(a, stream);
}

}  // namespace nybble::cuda
