// Launching: the error as a Status, and launches that may begin while the kernel before them ends.
#pragma once
#include <cuda_runtime.h>

#include "cuda/common/older.cuh"
#include "ops/problem.h"

namespace nybble::cuda {

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

inline Status status(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return {};
    case cudaErrorInsufficientDriver:
      return {"the driver is older than this library's CUDA wants: `nybble doctor` tells what to do"};
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return {"the library has no code for this GPU and driver: `nybble doctor` tells what to do"};
    default:
      return {cudaGetErrorString(error)};
  }
}

// What the last launch said.
inline Status launched() { return status(cudaGetLastError()); }

// Programmatic dependent launch (sm_90 and later; nothing before it). A kernel launched early may run while the one
// before it still does. Until wait_for_previous() it may read only what no kernel writes, weights and tables; whoever
// reads or writes anything else calls it first, or reads it again after. let_next_begin() comes after
// wait_for_previous(): then "the next kernel runs" means that everything before this kernel is complete, so a whole
// chain of kernels may read constants early. (But for a kernel that is a part of what the next does:
// qmatmul/gather.cu.)
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// `early`: gpu().sm >= 90, and the kernel calls wait_for_previous(). `cluster`: blocks that share their memory.
template <typename... Parameters, typename... Arguments>
Status launch_clusters(void (*kernel)(Parameters...), dim3 grid, int cluster, dim3 block, size_t shared, Stream stream,
                       bool early, Arguments... arguments) {
#ifdef __HIP__
  if (cluster > 1 || early) return {"a launch of sm_90 without CUDA"};
  kernel<<<grid, block, shared, native(stream)>>>(Parameters(arguments)...);
  return launched();
#else
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = native(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  return status(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
#endif
}

template <typename... Parameters, typename... Arguments>
Status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Stream stream, bool early,
              Arguments... arguments) {
  return launch_clusters(kernel, grid, 1, block, shared, stream, early, arguments...);
}

// The current device, asked once for each: what kernels are chosen by.
struct Gpu {
  int sm;             // 10 * major + minor, of the device or of the code it runs, whichever is less
  bool is_sm90;       // the device: only there is code for sm_90a
  int processors;     // multiprocessors
  int shared_memory;  // bytes a block may have after cudaFuncSetAttribute
};

static __global__ void code_version_probe() {}

inline Gpu gpu() {
  constexpr int kDevices = 64;
  static Gpu known[kDevices];  // a race writes the same values twice
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return {0, false, 1, 48 << 10};
  Gpu& g = known[device];
  if (g.processors == 0) {
    int major = 0, minor = 0, shared = 0, processors = 1;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    cudaFuncAttributes code{};
    cudaFuncGetAttributes(&code, code_version_probe);
    const int sm = 10 * major + minor;
    g.is_sm90 = sm == 90;
    g.sm = code.ptxVersion < sm ? code.ptxVersion : sm;
#ifdef __HIP__
    g.sm = 60;  // hip/compat.h: the code is as for it
#endif
    g.shared_memory = shared;
    g.processors = processors;  // last: it says that the others are there
  }
  return g;
}

}  // namespace nybble::cuda
