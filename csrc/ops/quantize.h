// Rounding to a uniform grid with one scale a column. With c = round(x / scale) + zero, ties to even, clamped to
// [0, last] (nan: last), a code c stands for (c - zero) * scale.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct QuantizeColumnsArgs {
  const float* x;  // [R, N], rows x_stride elements apart
  int64_t x_stride;
  const float* scales;  // [N]
  float zero, last;     // whole, 0 <= zero <= last <= 255
  uint8_t* codes;       // [R, N], contiguous
  float* values;        // [R, N], contiguous: h(h(code - zero) * h(scale)), h rounding to float16
  int64_t R, N;
};

// error[p, n] = sum over r of |(code - zero) * s - x[r, n]|^norm, s = scales[n] * factors[p], nothing rounded to
// float16. Codes are chosen with x * (1 / s): next to a tie that may be the other neighbour, which is equally far.
struct QuantizeErrorArgs {
  const float* x;  // [R, N], rows x_stride elements apart
  int64_t x_stride;
  const float* scales;   // [N]
  const float* factors;  // [P]
  float zero, last;
  float norm;    // 0 < norm <= 64
  float* error;  // [P, N], contiguous
  int64_t R, N, P;
};

namespace cpu {
Status quantize_columns(const QuantizeColumnsArgs&);
Status quantize_error(const QuantizeErrorArgs&);
}  // namespace cpu
namespace cuda {
Status quantize_columns(const QuantizeColumnsArgs&, Stream);
Status quantize_error(const QuantizeErrorArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
