// Values that stay in registers: the compiler would rather work them out anew at each use.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

namespace nybble::cuda {

__device__ __forceinline__ int kept(int v) {
  asm volatile("" : "+r"(v));
  return v;
}
// A pointer, or a number of 64 bits.
template <typename T, std::enable_if_t<sizeof(T) == 8, int> = 0>
__device__ __forceinline__ T kept(T v) {
#ifdef __HIP__
  asm volatile("" : "+v"(v));  // what its compiler calls a register
#else
  asm volatile("" : "+l"(v));
#endif
  return v;
}

}  // namespace nybble::cuda
