// rms_norm: y = x / sqrt(mean(x^2) + eps) * weight.   layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias.
//
//   row r of x  [ t0 | t1 | ... ]   a group of threads a row: read it once, share the sums, scale, write
//
// Sums in float. y may be x: the threads of a row read all of it before any of them writes (row.cuh, HeldRow), or
// read each number again just before they write it (StreamedRow).
#include "cuda/common/launch.cuh"
#include "cuda/common/moments.cuh"
#include "ops/norm.h"

namespace nybble::cuda {
namespace {

// `kEarly`: the weight is read while the kernel before this one ends. With many rows its registers are worth more.
template <typename Row, bool kCentred, bool kEarly>
__global__ void __launch_bounds__(Row::kThreads) norm_kernel(NormArgs a) {  // as ops/norm.h says
  using T = typename Row::Number;
  const int64_t r = row_of_thread<Row>();
  if (r >= a.R) return;
  const int64_t head = a.H == 1 ? 0 : r % a.H * a.D;
  float weight[kEarly ? Row::kChunks : 1][Row::kWidth];
  if constexpr (kEarly) Row::places(a.D, [&](int c, int64_t i) { load(a.weight, a.w_dtype, head + i, weight[c]); });
  wait_for_previous();
  let_next_begin();

  const Row row(static_cast<const T*>(a.x) + r * a.x_stride, a.D);
  const Moments m = moments<kCentred>(row, a.D, a.eps);
  row.each([&](int c, int64_t i, auto& v) {
    auto& scale = weight[kEarly ? c : 0];
    if constexpr (!kEarly) load(a.weight, a.w_dtype, head + i, scale);
#pragma unroll
    for (int j = 0; j < Row::kWidth; ++j) v[j] = (v[j] - m.mean) * m.factor * scale[j];
    if (kCentred && a.bias != nullptr) {
      float bias[Row::kWidth];
      load(a.bias, a.w_dtype, head + i, bias);
#pragma unroll
      for (int j = 0; j < Row::kWidth; ++j) v[j] += bias[j];
    }
    store(a.y, a.y_dtype, r * a.y_stride + i, v);
  });
}

template <bool kCentred>
Status norm(const NormArgs& a, Stream stream) {
  if (a.R == 0 || a.D == 0) return {};
  return with_type(a.dtype, [&](auto number) {
    using T = typename decltype(number)::type;
    constexpr int V = kWide<T>;
    const bool whole = a.D % V == 0 && wide(a.x, a.dtype, a.x_stride, V) && wide(a.y, a.y_dtype, a.y_stride, V) &&
                       wide(a.weight, a.w_dtype, a.D, V) && wide(a.bias, a.w_dtype, a.D, V);
    // On an H200 16 numbers a thread were quickest for one row and as good as 32 for many; the second sum of a centred
    // norm wants fewer threads to wait for each other.
    constexpr int kNumbers = kCentred && sizeof(T) == 2 ? 2 * kNormNumbers : kNormNumbers;
    return with_row<T, kNumbers>(a.D, whole, [&](auto form) {
      using Row = typename decltype(form)::type;
      // Early for many rows too where that was quicker: H200, 300 rows of 2048 halves 1.9 us, else 2.3; but 4096 rows
      // of 8192 halves 46, else 38.
      constexpr bool kEarly = Row::kHeld && (sizeof(T) == 4 || (Row::kThreads == 128 && Row::kChunks <= 2));
      const bool few = a.R <= 2 * gpu().processors;
      return launch_rows<Row>(few ? norm_kernel<Row, kCentred, Row::kHeld> : norm_kernel<Row, kCentred, kEarly>, a.R,
                              stream, a);
    });
  });
}

}  // namespace

Status rms_norm(const NormArgs& a, Stream stream) { return norm<false>(a, stream); }

Status layer_norm(const NormArgs& a, Stream stream) { return norm<true>(a, stream); }

}  // namespace nybble::cuda
