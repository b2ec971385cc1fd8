// y = x @ weight^T + bias, accumulated in float32.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct MatmulArgs {
  const void* x;  // [M, K], x_dtype, rows x_stride elements apart
  DType x_dtype;
  int64_t x_stride;
  const void* weight;  // [N, K], w_dtype, contiguous
  DType w_dtype;
  const void* bias;  // [N], w_dtype, or nullptr
  void* y;           // [M, N], x_dtype, contiguous
  int64_t M, N, K;
};

namespace cpu {
Status matmul(const MatmulArgs&);
}
namespace cuda {
Status matmul(const MatmulArgs&, Stream);
bool matmul_by_library(const MatmulArgs&);  // whether torch's own product is the better one
}  // namespace cuda

}  // namespace nybble
