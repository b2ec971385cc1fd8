// y[m, n] = (sum_k x[m, k] weight[n, k]) * (x_scale[m] * w_scale[n]) + bias[n], the sum exact in int32.
#pragma once
#include "ops/problem.h"

namespace nybble {

constexpr int64_t kInt8MaxK = (1 << 17) - 1;  // 2^17 products of 2^14 would not fit int32

struct Int8MatmulArgs {
  const int8_t* x;  // [M, K], rows x_stride elements apart
  int64_t x_stride;
  const float* x_scale;  // [M]
  const int8_t* weight;  // [N, K], contiguous
  const float* w_scale;  // [N]
  const float* bias;     // [N], or nullptr
  void* y;               // [M, N], y_dtype, contiguous
  DType y_dtype;
  int64_t M, N, K;   // K <= kInt8MaxK
  int32_t* scratch;  // [int8_matmul_scratch()], working memory
};

// int8_matmul_scratch: of arguments that are complete but for `scratch`.
namespace cpu {
Status int8_matmul(const Int8MatmulArgs&);
inline int64_t int8_matmul_scratch(const Int8MatmulArgs& a) { return a.M; }  // the sums of x's rows
}  // namespace cpu
namespace cuda {
Status int8_matmul(const Int8MatmulArgs&, Stream);
int64_t int8_matmul_scratch(const Int8MatmulArgs&);
}  // namespace cuda

}  // namespace nybble
