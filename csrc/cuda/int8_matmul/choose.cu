// Which kernel multiplies.
#include "cuda/int8_matmul/product.cuh"

namespace nybble::cuda {
namespace {

struct Strategy {
  bool (*supports)(const Int8MatmulArgs&);
  Status (*run)(const Int8MatmulArgs&, Stream);
  int64_t (*scratch)(const Int8MatmulArgs&);
};

int64_t nothing(const Int8MatmulArgs&) { return 0; }
bool always(const Int8MatmulArgs&) { return true; }

// The first that supports the problem.
const Strategy& chosen(const Int8MatmulArgs& a) {
  static constexpr Strategy strategies[] = {
      {int8::supports_few_rows, int8::few_rows, nothing},
      {int8::supports_wgmma_some, int8::wgmma_some, nothing},
      {int8::supports_wgmma_many, int8::wgmma_many, nothing},
      {always, int8::tiles, int8::tiles_scratch},
  };
  const Strategy* strategy = strategies;
  while (!strategy->supports(a)) ++strategy;
  return *strategy;
}

}  // namespace

Status int8_matmul(const Int8MatmulArgs& a, Stream stream) {
  if (a.M * a.N == 0) return {};
  return chosen(a).run(a, stream);
}

int64_t int8_matmul_scratch(const Int8MatmulArgs& a) { return a.M * a.N == 0 ? 0 : chosen(a).scratch(a); }

}  // namespace nybble::cuda
