// Which product serves a problem. Measured on an H200 in CUDA graphs, weights from memory, beside torch's own product.
#include "cuda/common/launch.cuh"
#include "cuda/common/wide.cuh"
#include "cuda/matmul/strategies.h"

namespace nybble::cuda {
namespace {

bool one_type(const MatmulArgs& a) { return a.x_dtype == a.w_dtype; }

// Multiply-adds hide behind reading the weight, with float32 up to 4 rows at a time. bfloat16, K 4096, M 1 and 2:
// N 128256 in 228 and 231 us, torch 239; N 4096 in 10, torch 13. float32, N 4096, M 4 and 8: 18 and 33, torch 28
// and 46.
bool supports_few_rows(const MatmulArgs& a) { return a.M <= (one_type(a) && a.x_dtype == DType::f32 ? 8 : 2); }

// Half numbers of one type: faster than torch while the weight is small (bfloat16, K 4096, M 8: N 1024 in 6 us, torch
// 8; N 4096 in 11, torch 13), slower beyond (N 14336 in 33, torch 30). Types that differ: no library multiplies them.
bool supports_mma_rows(const MatmulArgs& a) {
  return mma_rows_fit(a) && (!one_type(a) || (a.M <= 8 && a.N * a.K * size_of(a.w_dtype) <= (64 << 20)));
}

}  // namespace

bool matmul_by_library(const MatmulArgs& a) { return one_type(a) && !supports_few_rows(a) && !supports_mma_rows(a); }

Status matmul(const MatmulArgs& a, Stream stream) {
  if (a.M == 0 || a.N == 0) return {};
  if (supports_few_rows(a)) return matmul_few_rows(a, stream);
  if (supports_mma_rows(a)) return matmul_mma_rows(a, stream);
  return matmul_tiles(a, stream);
}

}  // namespace nybble::cuda
