// sm_90: barriers in shared memory that count bytes, boxes of a matrix by the copy engine, clusters of blocks.
#pragma once
#include <cuda.h>

#include "cuda/common/launch.cuh"

namespace nybble::cuda::int8 {

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// A phase is over after `arrivals` arrivals, and when the bytes announced are there.
struct Barrier {
  uint64_t state;

  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  __device__ void arrive_expecting(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }
  // Until the phase of this parity is over; the phase before the first counts as over, with parity 1.
  __device__ void wait(unsigned parity) {
    asm volatile(
        "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again;}" ::"r"(
            shared_address(this)),
        "r"(parity)
        : "memory");
  }
};

// After init(), before the copy engine is told of a barrier.
__device__ inline void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// The box of `map` whose first number is in this column and row; its bytes count at the barrier.
__device__ inline void copy_box(void* to, const CUtensorMap& map, int column, int row, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
      : "memory");
}

// A matrix of bytes, [rows, width], rows `stride` bytes apart, in boxes of box_rows x 128 bytes. A box lies in shared
// memory row by row, piece p of 16 bytes of row r at place p ^ r % 8; what is outside the matrix becomes zeros.
inline Status describe_bytes(CUtensorMap& map, const void* from, int64_t rows, int64_t width, int64_t stride,
                             int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled"));
  if (encode == nullptr) return {"the driver has no cuTensorMapEncodeTiled"};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[2] = {128, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(from), sizes, strides, box,
                                 steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return {result == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refused a matrix"};
}

// All threads of all blocks of the cluster; what was written before it can be read after it.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}

// What block `rank` of the cluster has where this one has `mine`.
__device__ inline int4 read_shared_of(const int4* mine, unsigned rank) {
  int4 v;
  asm volatile(
      "{.reg .b32 there; mapa.shared::cluster.u32 there, %4, %5; ld.shared::cluster.v4.s32 {%0,%1,%2,%3}, [there];}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(shared_address(mine)), "r"(rank)
      : "memory");
  return v;
}

}  // namespace nybble::cuda::int8
