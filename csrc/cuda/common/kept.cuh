// Values that stay in registers: the compiler would rather work them out anew at each use.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

namespace nybble::cuda {

#ifdef __HIP__
#define NYBBLE_64_BITS "+v"  // what the compiler calls a register
#else
#define NYBBLE_64_BITS "+l"
#endif

__device__ __forceinline__ int kept(int v) {
  asm volatile("" : "+r"(v));
  return v;
}
template <typename T, std::enable_if_t<sizeof(T) == 8 && std::is_integral_v<T>, int> = 0>
__device__ __forceinline__ T kept(T v) {
  asm volatile("" : NYBBLE_64_BITS(v));
  return v;
}
template <typename T>
__device__ __forceinline__ const T* kept(const T* v) {
  asm volatile("" : NYBBLE_64_BITS(v));
  return v;
}

#undef NYBBLE_64_BITS

}  // namespace nybble::cuda
