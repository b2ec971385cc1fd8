// quantize_int8: scale[r] = max|x[r]| / 127, code[r, d] = round(x[r, d] / scale[r]), ties to even.
// A row below 1e-30 gives scale 0, one that is not finite gives scale NaN; both have codes 0.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct QuantizeArgs {
  const void* x;  // [R, D], dtype, rows x_stride elements apart
  int8_t* codes;  // [R, D], contiguous
  float* scales;  // [R]
  DType dtype;
  int64_t R, D, x_stride;
};

namespace cpu {
Status quantize_int8(const QuantizeArgs&);
}
namespace cuda {
Status quantize_int8(const QuantizeArgs&, Stream);
}

}  // namespace nybble
