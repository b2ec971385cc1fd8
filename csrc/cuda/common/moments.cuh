// What a norm needs to know of a row: the mean to take off and the factor to apply.
#pragma once
#include "cuda/common/row.cuh"

namespace nybble::cuda {

struct Moments {
  float mean, factor;
};

// The variance from the centred numbers: mean(x^2) - mean^2 would cancel where the mean is large.
template <bool kCentred, typename Row>
__device__ inline Moments moments(const Row& row, int64_t D, float eps) {
  const float count = static_cast<float>(D);
  float mean = 0;
  if constexpr (kCentred) {
    float sum = 0;
    row.each([&](int, int64_t, const auto& v) {
#pragma unroll
      for (int j = 0; j < Row::kWidth; ++j) sum += v[j];
    });
    mean = group_reduce<Add, Row::kGroup>(sum) / count;
  }
  float squares = 0;
  row.each([&](int, int64_t, const auto& v) {
#pragma unroll
    for (int j = 0; j < Row::kWidth; ++j) squares += (v[j] - mean) * (v[j] - mean);
  });
  return {mean, rsqrtf(group_reduce<Add, Row::kGroup>(squares) / count + eps)};
}

}  // namespace nybble::cuda
