// Which kernel multiplies.
#include "cuda/int8_matmul/product.cuh"

namespace nybble::cuda {

Status int8_matmul(const Int8MatmulArgs& a, Stream stream) {
  if (a.M * a.N == 0) return {};
  if (int8::supports_few_rows(a)) return int8::few_rows(a, stream);
  if (int8::supports_wgmma(a)) return int8::wgmma(a, stream);
  return int8::tiles(a, stream);
}

}  // namespace nybble::cuda
