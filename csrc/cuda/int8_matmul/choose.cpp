// Which kernel multiplies: the first that supports the problem.
#include "cuda/int8_matmul/strategies.h"

namespace nybble::cuda {
namespace {

enum class Way { few_rows, wgmma_some, wgmma_many, tiles };

Way way_of(const Int8MatmulArgs& a) {
  if (int8::supports_few_rows(a)) return Way::few_rows;
  if (int8::supports_wgmma_some(a)) return Way::wgmma_some;
  if (int8::supports_wgmma_many(a)) return Way::wgmma_many;
  return Way::tiles;
}

}  // namespace

Status int8_matmul(const Int8MatmulArgs& a, Stream stream) {
  if (a.M * a.N == 0) return {};
  switch (way_of(a)) {
    case Way::few_rows:
      return int8::few_rows(a, stream);
    case Way::wgmma_some:
      return int8::wgmma_some(a, stream);
    case Way::wgmma_many:
      return int8::wgmma_many(a, stream);
    case Way::tiles:
      break;
  }
  return int8::tiles(a, stream);
}

int64_t int8_matmul_scratch(const Int8MatmulArgs& a) {
  return a.M * a.N > 0 && way_of(a) == Way::tiles ? int8::tiles_scratch(a) : 0;
}

}  // namespace nybble::cuda
