// Floats to codes on a uniform grid and back (ops/quantize.h has the formula). No step may be fused with another: the
// codes are those of the CPU.
#pragma once
#include "cuda/common/number.cuh"

namespace nybble::cuda {

struct Grid {
  float zero, last;

  __device__ float code(float ratio) const {
    const float c = rintf(ratio) + zero;
    return fmaxf(c < last ? c : last, 0.0f);  // NaN is not below last
  }
  __device__ float value(float code, float half_scale) const {
    return __half2float(__float2half(__fmul_rn(code - zero, half_scale)));
  }
};

__device__ inline float through_half(float v) { return __half2float(__float2half(v)); }

}  // namespace nybble::cuda
