// rms_norm: y = x / sqrt(mean(x^2) + eps) * weight.   layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct NormArgs {
  const void* x;       // [R, D], dtype, rows x_stride elements apart
  const void* weight;  // [H, D], w_dtype, contiguous; row r is scaled by row r % H
  const void* bias;    // [H, D], w_dtype, or nullptr (layer_norm only)
  void* y;             // [R, D], y_dtype, rows y_stride elements apart; x itself is allowed
  DType dtype, w_dtype, y_dtype;
  int64_t R, D, H, x_stride, y_stride;
  float eps;
};

namespace cpu {
Status rms_norm(const NormArgs&);
Status layer_norm(const NormArgs&);
}  // namespace cpu
namespace cuda {
Status rms_norm(const NormArgs&, Stream);
Status layer_norm(const NormArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
