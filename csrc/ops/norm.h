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

// layer_norm with the outputs of quantize_int8 (ops/quantize_int8.h) instead of y: the scale from y rounded to dtype,
// the codes from y before that.
struct NormInt8Args {
  NormArgs norm;  // y is not used
  int8_t* codes;  // [R, D], contiguous
  float* scales;  // [R]
};

namespace cpu {
Status rms_norm(const NormArgs&);
Status layer_norm(const NormArgs&);
Status layer_norm_int8(const NormInt8Args&);
}  // namespace cpu
namespace cuda {
Status rms_norm(const NormArgs&, Stream);
Status layer_norm(const NormArgs&, Stream);
Status layer_norm_int8(const NormInt8Args&, Stream);
}  // namespace cuda

}  // namespace nybble
