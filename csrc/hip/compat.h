// CUDA's names for a compiler of HIP: what the kernels without tensor cores use of them. A kernel is compiled as for
// the oldest GPU of NVIDIA's that we know (sm_60), where nothing but plain instructions is left.
//
// A warp is 32 lanes everywhere: where AMD's have 64, each half is one, so ballots are those of the caller's half.
#pragma once
#include <hip/hip_bf16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>

#ifdef __HIP_DEVICE_COMPILE__
#define __CUDA_ARCH__ 600
#endif
#define CUDART_VERSION 12000
#define __grid_constant__

using __nv_bfloat16 = __hip_bfloat16;
using __nv_bfloat162 = __hip_bfloat162;

#define cudaDevAttrComputeCapabilityMajor hipDeviceAttributeComputeCapabilityMajor
#define cudaDevAttrComputeCapabilityMinor hipDeviceAttributeComputeCapabilityMinor
#define cudaDevAttrMaxSharedMemoryPerBlockOptin hipDeviceAttributeMaxSharedMemoryPerBlock
#define cudaDevAttrMultiProcessorCount hipDeviceAttributeMultiprocessorCount
#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaError_t hipError_t
#define cudaErrorInsufficientDriver hipErrorInsufficientDriver
#define cudaErrorNoKernelImageForDevice hipErrorNoBinaryForGpu
#define cudaErrorUnsupportedPtxVersion hipErrorInvalidKernelFile
#define cudaFuncAttributeMaxDynamicSharedMemorySize hipFuncAttributeMaxDynamicSharedMemorySize
#define cudaFuncAttributes hipFuncAttributes
#define cudaFuncGetAttributes(attributes, kernel) \
  hipFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel))
#define cudaFuncSetAttribute(kernel, name, value) \
  hipFuncSetAttribute(reinterpret_cast<const void*>(kernel), name, value)
#define cudaGetDevice hipGetDevice
#define cudaGetErrorString hipGetErrorString
#define cudaGetLastError hipGetLastError
#define cudaMemsetAsync hipMemsetAsync
#define cudaStream_t hipStream_t
#define cudaSuccess hipSuccess

namespace nybble::hip {

template <typename T>
__device__ inline T shuffle(T v, int lane) {
  return __shfl(v, lane, 32);
}
template <typename T>
__device__ inline T shuffle_xor(T v, int bits) {
  return __shfl_xor(v, bits, 32);
}
template <typename T>
__device__ inline T shuffle_up(T v, unsigned distance) {
  return __shfl_up(v, distance, 32);
}
template <typename T>
__device__ inline T shuffle_down(T v, unsigned distance) {
  return __shfl_down(v, distance, 32);
}
__device__ inline unsigned ballot(bool v) { return static_cast<unsigned>(__ballot(v) >> (__lane_id() & 32)); }
__device__ inline bool all(bool v) { return ballot(v) == ballot(true); }
__device__ inline bool any(bool v) { return ballot(v) != 0; }
__device__ inline void sync_warp() {
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
}

// Shared memory by its own addresses of 32 bits.
using SharedWord = __attribute__((address_space(3))) unsigned;
__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(reinterpret_cast<uintptr_t>((__attribute__((address_space(3))) const void*)p));
}
__device__ inline unsigned shared_add(unsigned address, unsigned v) {
  auto* word = reinterpret_cast<SharedWord*>(static_cast<uintptr_t>(address));
  return __hip_atomic_fetch_add(word, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
}

}  // namespace nybble::hip

#define __cvta_generic_to_shared nybble::hip::shared_address

__device__ inline __hip_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return __hip_bfloat162{__float2bfloat16(a), __float2bfloat16(b)};
}
__device__ inline __hip_bfloat162 __float2bfloat162_rn(float v) { return __floats2bfloat162_rn(v, v); }

// Of two halves: never fused with a product before them.
__device__ inline __half2 __hadd2_rn(__half2 a, __half2 b) {
#pragma clang fp contract(off)
  return __hadd2(a, b);
}
__device__ inline __half2 __hsub2_rn(__half2 a, __half2 b) {
#pragma clang fp contract(off)
  return __hsub2(a, b);
}
__device__ inline __half2 __hmul2_rn(__half2 a, __half2 b) {
#pragma clang fp contract(off)
  return __hmul2(a, b);
}
// The other one where one is NaN.
__device__ inline __half2 __hmax2(__half2 a, __half2 b) {
  return __halves2half2(__hmax(__low2half(a), __low2half(b)), __hmax(__high2half(a), __high2half(b)));
}
__device__ inline __half2 __hmin2(__half2 a, __half2 b) {
  return __halves2half2(__hmin(__low2half(a), __low2half(b)), __hmin(__high2half(a), __high2half(b)));
}

// Past the first cache: a plain load, where nothing but plain instructions is left.
template <typename T>
__device__ inline T __ldcg(const T* p) {
  return *p;
}

// HIP has these for numbers of 32 bits, and would cut longer ones off.
#define NYBBLE_LONGER(T)                                               \
  __host__ __device__ inline T max(T a, T b) { return a > b ? a : b; } \
  __host__ __device__ inline T min(T a, T b) { return a < b ? a : b; }
NYBBLE_LONGER(long)
NYBBLE_LONGER(unsigned long)
NYBBLE_LONGER(long long)
NYBBLE_LONGER(unsigned long long)
#undef NYBBLE_LONGER

// All masks here are those of a whole warp.
#define __shfl_sync(mask, ...) nybble::hip::shuffle(__VA_ARGS__)
#define __shfl_xor_sync(mask, ...) nybble::hip::shuffle_xor(__VA_ARGS__)
#define __shfl_up_sync(mask, ...) nybble::hip::shuffle_up(__VA_ARGS__)
#define __shfl_down_sync(mask, ...) nybble::hip::shuffle_down(__VA_ARGS__)
#define __ballot_sync(mask, v) nybble::hip::ballot(v)
#define __all_sync(mask, v) nybble::hip::all(v)
#define __any_sync(mask, v) nybble::hip::any(v)
#define __syncwarp() nybble::hip::sync_warp()
