// Which strategy serves a product: the first whose predicate says yes.
#include "cuda/qmatmul/qmatmul.h"

namespace nybble::cuda {

int64_t qmatmul_scratch_bytes(const QMatmulArgs& a) {
  if (prefers_wide(a)) return qmatmul_wide_scratch_bytes(a);
  return supports_few(a) ? qmatmul_few_scratch_bytes(a) : qmatmul_simt_scratch_bytes(a);
}

bool qmatmul_prepares(const QMatmulArgs& a) { return !prefers_wide(a) && supports_few(a) && few_prepares(a); }

Status qmatmul(const QMatmulArgs& a, Stream stream) {
  if (a.K > INT32_MAX - 32 || a.N > INT32_MAX - 32) return {"qmatmul: K and N are limited to 2^31 - 33"};
  if (prefers_wide(a)) return qmatmul_wide(a, stream);
  return supports_few(a) ? qmatmul_few(a, stream) : qmatmul_simt(a, stream);
}

}  // namespace nybble::cuda
