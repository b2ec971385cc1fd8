// y = x / sqrt(mean(x^2) + eps) * weight. One block a row: sum the squares, share the factor, scale; sums in float.
//
//   row r of x  [ ........ D ........ ]   thread t takes elements t, t + 256, ...: neighbours read neighbours
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "ops/norm.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float to_float(float v) { return v; }
__device__ float to_float(__half v) { return __half2float(v); }
__device__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T>
__device__ T from_float(float v);
template <>
__device__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __half from_float<__half>(float v) {
  return __float2half(v);
}
template <>
__device__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16(v);
}

// Sum over the block; every thread gets it.
__device__ float block_sum(float v) {
  __shared__ float parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
  for (float part : parts) sum += part;
  return sum;
}

// y may be x: a block reads its whole row before the sum is known, and then each element just before it writes it.
template <typename T, typename W, typename Y>
__global__ void rms_norm_kernel(const T* x,       // [R, D], rows x_stride elements apart
                                const W* weight,  // [H, D]
                                Y* y,             // [R, D], rows y_stride elements apart
                                int64_t D, int64_t H, int64_t x_stride, int64_t y_stride, float eps) {
  const T* row = x + static_cast<int64_t>(blockIdx.x) * x_stride;
  const W* scale = weight + blockIdx.x % H * D;
  Y* out = y + static_cast<int64_t>(blockIdx.x) * y_stride;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < D; i += kThreads) {
    const float v = to_float(row[i]);
    squares += v * v;
  }
  const float factor = rsqrtf(block_sum(squares) / static_cast<float>(D) + eps);
  for (int64_t i = threadIdx.x; i < D; i += kThreads)
    out[i] = from_float<Y>(to_float(row[i]) * factor * to_float(scale[i]));
}

template <typename T, typename W, typename Y>
Status launch(const NormArgs& a, cudaStream_t stream) {
  rms_norm_kernel<<<static_cast<unsigned>(a.R), kThreads, 0, stream>>>(
      static_cast<const T*>(a.x), static_cast<const W*>(a.weight), static_cast<Y*>(a.y), a.D, a.H, a.x_stride,
      a.y_stride, a.eps);
  const cudaError_t error = cudaGetLastError();
  return {error == cudaSuccess ? nullptr : cudaGetErrorString(error)};
}

template <typename T, typename W>
Status with_output(const NormArgs& a, cudaStream_t stream) {
  switch (a.y_dtype) {
    case DType::f32:
      return launch<T, W, float>(a, stream);
    case DType::f16:
      return launch<T, W, __half>(a, stream);
    case DType::bf16:
      return launch<T, W, __nv_bfloat16>(a, stream);
  }
  return {"rms_norm: unknown dtype of y"};
}

template <typename T>
Status with_weight(const NormArgs& a, cudaStream_t stream) {
  switch (a.w_dtype) {
    case DType::f32:
      return with_output<T, float>(a, stream);
    case DType::f16:
      return with_output<T, __half>(a, stream);
    case DType::bf16:
      return with_output<T, __nv_bfloat16>(a, stream);
  }
  return {"rms_norm: unknown dtype of weight"};
}

}  // namespace

Status rms_norm(const NormArgs& a, Stream stream) {
  if (a.R == 0 || a.D == 0) return {};
  if (a.R > 0x7fffffff) return {"rms_norm: more than 2^31 - 1 rows"};
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return with_weight<float>(a, s);
    case DType::f16:
      return with_weight<__half>(a, s);
    case DType::bf16:
      return with_weight<__nv_bfloat16>(a, s);
  }
  return {"rms_norm: unknown dtype of x"};
}

}  // namespace nybble::cuda
