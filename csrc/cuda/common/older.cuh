// What GPUs before Turing and toolkits before CUDA 12.5 lack. Other files are written without minding it.
#pragma once
#include <cuda_runtime.h>

// Parameters whose address a kernel may take without a copy. Pascal has none: there the compiler makes the copy.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#undef __grid_constant__
#define __grid_constant__
#endif

// In the text of a load: that the line needs no place in the first cache.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#define NYBBLE_NO_ALLOCATE
#else
#define NYBBLE_NO_ALLOCATE ".L1::no_allocate"
#endif

namespace nybble::cuda {

// The lanes of a whole warp whose v is the caller's. All lanes call it.
__device__ inline unsigned lanes_alike(unsigned v) {
#if __CUDA_ARCH__ >= 700
  return __match_any_sync(0xffffffffu, v);
#else
  unsigned alike = 0;
#pragma unroll
  for (int lane = 0; lane < 32; ++lane)
    if (v == __shfl_sync(0xffffffffu, v, lane)) alike |= 1u << lane;
  return alike;
#endif
}

#ifndef __HIP__
// A function of the driver of CUDA 12.0 or later; null where it has none of that name.
inline void* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? found : nullptr;
}
#endif

}  // namespace nybble::cuda
