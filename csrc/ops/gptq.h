// One group of GPTQ. For each row r < R, in order: quantize it as in ops/quantize.h, error[r] = (weight[r] - value) /
// U[r, r], weight[r] = value, and weight[q] -= U[r, q] * error[r] for every row q > r.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct GptqGroupArgs {
  float* weight;  // [T, N], rows weight_stride elements apart; changed in place
  int64_t weight_stride;
  uint8_t* codes;  // [R, N], rows codes_stride elements apart; out
  int64_t codes_stride;
  float* error;  // [R, N], rows error_stride elements apart; out
  int64_t error_stride;
  const float* cholesky;  // [T, T], rows cholesky_stride elements apart: U, upper, inverse Hessian = U^T U
  int64_t cholesky_stride;
  const float* scales;  // [N]
  float zero, last;     // whole, 0 <= zero <= last <= 255
  int64_t T, N, R;      // R <= T
};

namespace cpu {
Status gptq_group(const GptqGroupArgs&);
}
namespace cuda {
Status gptq_group(const GptqGroupArgs&, Stream);
}

}  // namespace nybble
