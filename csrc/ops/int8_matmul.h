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
  int64_t M, N, K;    // K <= kInt8MaxK
  int32_t* row_sums;  // [M], working memory of the CPU's kernel; nullptr on the GPU
};

namespace cpu {
Status int8_matmul(const Int8MatmulArgs&);
}
namespace cuda {
Status int8_matmul(const Int8MatmulArgs&, Stream);
}

}  // namespace nybble
