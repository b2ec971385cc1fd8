// Sums and maxima over a warp or a block. Every thread gets the answer, the same one in every run.
#pragma once
#include <cuda_runtime.h>

namespace nybble::cuda {

struct Add {
  __device__ static float identity() { return 0.0f; }
  __device__ static float join(float a, float b) { return a + b; }
};
// NaN wins, unlike in fmaxf: a NaN in the input must show in the answer.
struct Max {
  __device__ static float identity() { return -INFINITY; }
  __device__ static float join(float a, float b) { return a >= b || a != a ? a : b; }
};

template <typename Op>
__device__ inline float warp_reduce(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = Op::join(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// The greater; NaN if either is (sm_80 and later; nothing before it).
__device__ inline float max_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
#endif
  return a;
}

// Over a warp, of whole numbers: from sm_80 on one instruction.
__device__ inline unsigned warp_max(unsigned v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, v);
#else
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
#endif
}

// All kThreads threads of the block must call it; kThreads is a multiple of 32. May be called again at once.
template <typename Op, int kThreads>
__device__ inline float block_reduce(float v) {
  __shared__ float parts[kThreads / 32];
  v = warp_reduce<Op>(v);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  float all = Op::identity();
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) all = Op::join(all, parts[i]);
  __syncthreads();
  return all;
}

}  // namespace nybble::cuda
