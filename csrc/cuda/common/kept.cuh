// Values that stay in registers: the compiler would rather work them out anew at each use.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace nybble::cuda {

__device__ __forceinline__ int kept(int v) {
  asm volatile("" : "+r"(v));
  return v;
}
__device__ __forceinline__ int64_t kept(int64_t v) {
  asm volatile("" : "+l"(v));
  return v;
}
template <typename T>
__device__ __forceinline__ const T* kept(const T* v) {
  asm volatile("" : "+l"(v));
  return v;
}

}  // namespace nybble::cuda
