// Blocks that share the keys of one row each leave a part of its answer in memory; join_parts() adds them up.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>

#include "ops/problem.h"

namespace nybble::cuda {

constexpr int64_t kMostParts = 256;

// A running softmax: the largest score so far and the sum of exp(score - largest).
struct SoftmaxState {
  float largest, total;
};

__device__ inline float softmax_weight(float score, float largest) {
  return __expf(score - (largest == -INFINITY ? 0.0f : largest));  // nothing seen yet: every weight is 0
}

struct Parts {
  float* sums;           // [rows, count, D], values times their weights
  SoftmaxState* states;  // [rows, count]
  int count;             // of a row; 1: there are no parts, and no memory for them

  __device__ float* sums_of(int64_t row, int part, int D) const { return sums + (row * count + part) * D; }
  __device__ SoftmaxState& state_of(int64_t row, int part) const { return states[row * count + part]; }
};

inline int64_t parts_bytes(int64_t rows, int64_t count, int64_t D) {
  return count == 1 ? 0 : rows * count * (D * static_cast<int64_t>(sizeof(float)) + sizeof(SoftmaxState));
}
inline Parts parts_at(void* scratch, int64_t rows, int64_t count, int64_t D) {
  float* sums = static_cast<float*>(scratch);
  return {sums, reinterpret_cast<SoftmaxState*>(sums + rows * count * D), static_cast<int>(count)};
}

// o [rows, D], contiguous. D is a multiple of 4.
Status join_parts(const Parts&, void* o, DType, int64_t rows, int64_t D, Stream);

}  // namespace nybble::cuda
