// Which kernel multiplies.
#include "cuda/int8_matmul/product.cuh"

namespace nybble::cuda {

Status int8_matmul(const Int8MatmulArgs& a, Stream stream) {
  if (a.M * a.N == 0) return {};
  if (int8::supports_few_rows(a)) return int8::few_rows(a, stream);
  if (int8::supports_wgmma_some(a)) return int8::wgmma_some(a, stream);
  if (int8::supports_wgmma_many(a)) return int8::wgmma_many(a, stream);
  return int8::tiles(a, stream);
}

}  // namespace nybble::cuda
