// y = x / sqrt(mean(x^2) + eps) * weight. One block a row: sum the squares, share the factor, scale; sums in float.
//
//   row r of x  [ ........ D ........ ]   thread t takes elements t, t + 256, ...: neighbours read neighbours
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "ops/norm.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 256;

// y may be x: a block reads its whole row before the sum is known, and then each element just before it writes it.
template <typename T, typename W, typename Y>
__global__ void rms_norm_kernel(const T* x,       // [R, D], rows x_stride elements apart
                                const W* weight,  // [H, D]
                                Y* y,             // [R, D], rows y_stride elements apart
                                int64_t D, int64_t H, int64_t x_stride, int64_t y_stride, float eps) {
  const T* row = x + static_cast<int64_t>(blockIdx.x) * x_stride;
  const W* scale = weight + blockIdx.x % H * D;
  Y* out = y + static_cast<int64_t>(blockIdx.x) * y_stride;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < D; i += kThreads) {
    const float v = to_float(row[i]);
    squares += v * v;
  }
  const float factor = rsqrtf(block_reduce<Add, kThreads>(squares) / static_cast<float>(D) + eps);
  for (int64_t i = threadIdx.x; i < D; i += kThreads)
    out[i] = from_float<Y>(to_float(row[i]) * factor * to_float(scale[i]));
}

}  // namespace

Status rms_norm(const NormArgs& a, Stream stream) {
  if (a.R == 0 || a.D == 0) return {};
  if (a.R > 0x7fffffff) return {"rms_norm: more than 2^31 - 1 rows"};
  return with_type(a.dtype, [&](auto x) {
    return with_type(a.w_dtype, [&](auto w) {
      return with_type(a.y_dtype, [&](auto y) {
        using T = typename decltype(x)::type;
        using W = typename decltype(w)::type;
        using Y = typename decltype(y)::type;
        rms_norm_kernel<<<static_cast<unsigned>(a.R), kThreads, 0, native(stream)>>>(
            static_cast<const T*>(a.x), static_cast<const W*>(a.weight), static_cast<Y*>(a.y), a.D, a.H, a.x_stride,
            a.y_stride, a.eps);
        return launched();
      });
    });
  });
}

}  // namespace nybble::cuda
