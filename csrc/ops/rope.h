// Rotates the first R of D channels in place: (a, b) -> (a cos - b sin, b cos + a sin).
// neox pairs channel i with i + R/2, gptj pairs 2i with 2i + 1.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct RopeArgs {
  void* x;  // [B, T, H, D], dtype; strides in elements below, unit stride along D
  DType dtype;
  const float* cos;          // [P, R/2]
  const float* sin;          // [P, R/2]
  const int64_t* positions;  // [B, T], each in [0, P)
  int64_t B, T, H, D, R, P;
  int64_t stride_b, stride_t, stride_h;
  bool neox;
};

namespace cpu {
Status rope(const RopeArgs&);
}
namespace cuda {
Status rope(const RopeArgs&, Stream);
}

}  // namespace nybble
