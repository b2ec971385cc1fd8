// How Hopper's copy engine is told of a tensor.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include "cuda/common/older.cuh"
#include "ops/problem.h"

namespace nybble::cuda {

// A tensor of 16-bit numbers as the copy engine takes it apart, in boxes 64 numbers wide; strides in numbers, that of
// the last dimension is 1. In shared memory a row of a box is 128 bytes, chunk of 16 bytes c at c ^ (row % 8).
template <int kRank>
Status describe_tensor(CUtensorMap& map, const void* from, const int64_t (&sizes)[kRank],
                       const int64_t (&strides)[kRank - 1], const int64_t (&box)[kRank]) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled"));
  if (encode == nullptr) return {"attention: the driver has no cuTensorMapEncodeTiled"};
  cuuint64_t size[kRank], stride[kRank - 1];
  cuuint32_t boxes[kRank], steps[kRank];
  for (int i = 0; i < kRank; ++i) size[i] = sizes[i], boxes[i] = static_cast<cuuint32_t>(box[i]), steps[i] = 1;
  for (int i = 0; i + 1 < kRank; ++i) stride[i] = strides[i] * 2;
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(from), size, stride,
                                 boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return {result == CUDA_SUCCESS ? nullptr : "attention: cuTensorMapEncodeTiled refused a tensor"};
}

}  // namespace nybble::cuda
