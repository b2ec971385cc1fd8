// The three number types of activations as float and back, and a switch over them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/problem.h"

namespace nybble::cuda {

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __half from_float<__half>(float v) {
  return __float2half(v);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16(v);
}

// 2^x in one instruction, to two units in the last place; 0 for -infinity and where exp2f would spend more on a
// denormal result.
__device__ inline float exp2_approximate(float x) {
#ifdef __HIP__
  return __builtin_amdgcn_exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>{}) with T the C++ type of `dtype`.
template <typename Body>
Status with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::f32:
      return body(TypeTag<float>{});
    case DType::f16:
      return body(TypeTag<__half>{});
    case DType::bf16:
      return body(TypeTag<__nv_bfloat16>{});
  }
  return {"unknown dtype"};
}

}  // namespace nybble::cuda
