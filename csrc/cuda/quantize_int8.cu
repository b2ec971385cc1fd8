// quantize_int8: scale[r] = max|x[r]| / 127, code[r, d] = round(x[r, d] / scale[r]), ties to even.
// layer_norm_int8: the same of y = (x - mean) / sqrt(var + eps) * weight + bias, the scale from y rounded to x's type.
//
//   row r of x  [ t0 | t1 | ... ]   a group of threads a row: read it once, share the largest, write codes
#include <cfloat>

#include "cuda/common/launch.cuh"
#include "cuda/common/moments.cuh"
#include "ops/norm.h"
#include "ops/quantize_int8.h"

namespace nybble::cuda {
namespace {

// What a row's largest number says: the scale, and what its numbers are multiplied by. `inverse` 0: all codes are 0.
struct Steps {
  float scale, inverse;

  __device__ explicit Steps(float largest) {
    const bool finite = largest <= FLT_MAX;
    const bool usable = finite && largest >= 1e-30f;  // below it 127 / largest might be infinite
    scale = usable ? largest / 127.0f : finite ? 0.0f : NAN;
    inverse = usable ? 127.0f / largest : 0.0f;
  }

  template <int V>
  __device__ void write(const float (&v)[V], int8_t* codes) const {
    Pack<int8_t, V> pack;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float step = fminf(127.0f, fmaxf(-127.0f, v[j] * inverse));
      pack.v[j] = static_cast<int8_t>(inverse == 0.0f ? 0 : __float2int_rn(step));
    }
    cuda::write(codes, pack);
  }
};

// The larger of `largest` and every |v|; NaN where there is one.
template <int V>
__device__ inline float with_largest(float largest, const float (&v)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) largest = Max::join(largest, fabsf(v[j]));
  return largest;
}

template <typename Row>
__global__ void __launch_bounds__(Row::kThreads) quantize_int8_kernel(QuantizeArgs a) {  // as ops/quantize_int8.h says
  using T = typename Row::Number;
  const int64_t r = row_of_thread<Row>();
  if (r >= a.R) return;
  wait_for_previous();
  let_next_begin();
  const Row row(static_cast<const T*>(a.x) + r * a.x_stride, a.D);
  float largest = 0;
  row.each([&](int, int64_t, const auto& v) { largest = with_largest(largest, v); });
  const Steps steps(group_reduce<Max, Row::kGroup>(largest));
  row.each([&](int, int64_t i, const auto& v) { steps.write(v, a.codes + r * a.D + i); });
  if (threadIdx.x % Row::kGroup == 0) a.scales[r] = steps.scale;
}

// V numbers of a row from i on, normed; W: the weight's type.
template <typename W, int V>
__device__ inline void normed(const NormArgs& a, Moments m, int64_t i, float (&v)[V]) {
  float weight[V], bias[V] = {};
  load(static_cast<const W*>(a.weight) + i, weight);
  if (a.bias != nullptr) load(static_cast<const W*>(a.bias) + i, bias);
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = (v[j] - m.mean) * m.factor * weight[j] + bias[j];
}

template <typename Row>
__global__ void __launch_bounds__(Row::kThreads) layer_norm_int8_kernel(NormInt8Args args) {  // as ops/norm.h says
  using T = typename Row::Number;
  constexpr int V = Row::kWidth;
  const NormArgs& a = args.norm;
  const int64_t r = row_of_thread<Row>();
  if (r >= a.R) return;
  wait_for_previous();
  let_next_begin();
  const Row row(static_cast<const T*>(a.x) + r * a.x_stride, a.D);
  const Moments m = moments<true>(row, a.D, a.eps);
  float y[Row::kChunks][V], largest = 0;  // y: of a row that is held
  on_type(a.w_dtype, [&](auto tag) {
    using W = typename decltype(tag)::type;
    row.each([&](int c, int64_t i, float (&v)[V]) {
      normed<W>(a, m, i, v);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        y[c][j] = v[j];
        v[j] = to_float(from_float<T>(v[j]));
      }
      largest = with_largest(largest, v);
    });
  });
  const Steps steps(group_reduce<Max, Row::kGroup>(largest));
  int8_t* codes = args.codes + r * a.D;
  if constexpr (Row::kHeld)
    row.each([&](int c, int64_t i, float (&)[V]) { steps.write(y[c], codes + i); });
  else
    on_type(a.w_dtype, [&](auto tag) {
      using W = typename decltype(tag)::type;
      row.each([&](int, int64_t i, float (&v)[V]) {
        normed<W>(a, m, i, v);
        steps.write(v, codes + i);
      });
    });
  if (threadIdx.x % Row::kGroup == 0) args.scales[r] = steps.scale;
}

// Codes of a row are written kWide<T> at a time, one byte each.
template <typename T>
bool whole(const void* x, DType dtype, int64_t x_stride, int64_t D, const int8_t* codes) {
  constexpr int V = kWide<T>;
  return D % V == 0 && wide(x, dtype, x_stride, V) && reinterpret_cast<uintptr_t>(codes) % V == 0;
}

}  // namespace

Status quantize_int8(const QuantizeArgs& a, Stream stream) {
  if (a.R == 0) return {};
  return with_type(a.dtype, [&](auto number) {
    using T = typename decltype(number)::type;
    return with_row<T, 4 * kWide<T>>(a.D, whole<T>(a.x, a.dtype, a.x_stride, a.D, a.codes), [&](auto form) {
      using Row = typename decltype(form)::type;
      return launch_rows<Row>(quantize_int8_kernel<Row>, a.R, stream, a);
    });
  });
}

Status layer_norm_int8(const NormInt8Args& args, Stream stream) {
  const NormArgs& a = args.norm;
  if (a.R == 0) return {};
  return with_type(a.dtype, [&](auto number) {
    using T = typename decltype(number)::type;
    constexpr int V = kWide<T>;
    const bool fits = whole<T>(a.x, a.dtype, a.x_stride, a.D, args.codes) && wide(a.weight, a.w_dtype, 0, V) &&
                      wide(a.bias, a.w_dtype, 0, V);
    return with_row<T, 4 * kWide<T>>(a.D, fits, [&](auto form) {
      using Row = typename decltype(form)::type;
      return launch_rows<Row>(layer_norm_int8_kernel<Row>, a.R, stream, args);
    });
  });
}

}  // namespace nybble::cuda
