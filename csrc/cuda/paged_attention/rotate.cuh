// The rotation of a group of 64 channels that kv_quantize stores, on floats: elements of even and of odd index, each a
// vector of 32, times the Hadamard matrix. Lane l of a warp holds elements 2l and 2l + 1.
#pragma once
#include <cuda_runtime.h>

namespace nybble::cuda::paged {

__device__ inline void rotate(float (&v)[2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float other = __shfl_xor_sync(0xffffffffu, v[e], step);
      v[e] = other + (lane & step ? -v[e] : v[e]);
    }
}

}  // namespace nybble::cuda::paged
