// How Hopper's copy engine is told of a tensor.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include "cuda/common/older.cuh"
#include "ops/problem.h"

namespace nybble::cuda {

// A tensor of numbers of so many bytes, in boxes; strides in numbers, that of the last dimension is 1. What of a box
// lies outside the tensor becomes zeros. `swizzle`: a row of a box is 128 bytes in shared memory, of which chunk c of
// 16 bytes lies at c ^ (row % 8).
template <int kRank>
Status describe_tensor(CUtensorMap& map, CUtensorMapDataType type, int bytes, const void* from,
                       const int64_t (&sizes)[kRank], const int64_t (&strides)[kRank - 1], const int64_t (&box)[kRank],
                       bool swizzle = true) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled"));
  if (encode == nullptr) return {"the driver has no cuTensorMapEncodeTiled"};
  cuuint64_t size[kRank], stride[kRank - 1];
  cuuint32_t boxes[kRank], steps[kRank];
  for (int i = 0; i < kRank; ++i) size[i] = sizes[i], boxes[i] = static_cast<cuuint32_t>(box[i]), steps[i] = 1;
  for (int i = 0; i + 1 < kRank; ++i) stride[i] = strides[i] * bytes;
  const CUresult result =
      encode(&map, type, kRank, const_cast<void*>(from), size, stride, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return {result == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refuses a tensor"};
}

}  // namespace nybble::cuda
