// quantize_columns: number by number. quantize_error: a search over scales, each column and factor by itself.
//
//   columns ->  [ 32 of a block, a lane each ]      warp w: rows w, w + 8, ...; kFactors sums a thread, so that a row
//   rows    v   [ 8 warps                    ]      is read once for all of them; the warps' sums are added in order
#include "cuda/common/grid.cuh"
#include "cuda/common/launch.cuh"
#include "ops/quantize.h"

namespace nybble::cuda {
namespace {

constexpr int kQuantizeThreads = 256, kQuantizeWarps = kQuantizeThreads / 32;
constexpr int kFactors = 8;
// Rows a thread sums before it adds them to what it has: a sum of short sums loses less to rounding.
constexpr int kShort = 64;

template <int V, typename T>
struct alignas(V * sizeof(T)) Piece {
  T v[V];
};

template <int V>
__global__ void __launch_bounds__(kQuantizeThreads) columns_kernel(QuantizeColumnsArgs a) {  // as ops/quantize.h says
  const Grid grid{a.zero, a.last};
  const int64_t pieces = a.N / V;
  for (int64_t i = int64_t{blockIdx.x} * kQuantizeThreads + threadIdx.x; i < a.R * pieces;
       i += int64_t{gridDim.x} * kQuantizeThreads) {
    const int64_t row = i / pieces, n = (i - row * pieces) * V;
    const auto x = *reinterpret_cast<const Piece<V, float>*>(a.x + row * a.x_stride + n);
    const auto scale = *reinterpret_cast<const Piece<V, float>*>(a.scales + n);
    Piece<V, uint8_t> codes;
    Piece<V, float> values;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float code = grid.code(__fdiv_rn(x.v[j], scale.v[j]));
      codes.v[j] = static_cast<uint8_t>(code);
      values.v[j] = grid.value(code, through_half(scale.v[j]));
    }
    *reinterpret_cast<Piece<V, uint8_t>*>(a.codes + row * a.N + n) = codes;
    *reinterpret_cast<Piece<V, float>*>(a.values + row * a.N + n) = values;
  }
}

struct Square {
  __device__ float operator()(float e) const { return e * e; }
};
// Off by norm |log2 e| 2^-24 or so: what counts in a sum is near 1.
struct Power {
  float norm;
  __device__ float operator()(float e) const { return __powf(e, norm); }
};

template <typename Measure>
__global__ void __launch_bounds__(kQuantizeThreads) error_kernel(QuantizeErrorArgs a,   // as ops/quantize.h says
                                                                 unsigned column_sets,  // of 32 columns
                                                                 Measure measure) {  // |difference| to what is summed
  const Grid grid{a.zero, a.last};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t n = blockIdx.x % column_sets * int64_t{32} + lane;
  const int64_t p0 = blockIdx.x / column_sets * int64_t{kFactors};
  const bool inside = n < a.N;
  float scale[kFactors], inverse[kFactors], sum[kFactors] = {};
#pragma unroll
  for (int j = 0; j < kFactors; ++j) {
    scale[j] = inside && p0 + j < a.P ? a.scales[n] * a.factors[p0 + j] : 1.0f;
    inverse[j] = 1.0f / scale[j];
  }
  for (int64_t r0 = warp; r0 < a.R; r0 += kShort * kQuantizeWarps) {
    float part[kFactors] = {};
    const int64_t end = min(r0 + kShort * kQuantizeWarps, a.R);
    for (int64_t r = r0; r < end; r += kQuantizeWarps) {
      const float x = inside ? a.x[r * a.x_stride + n] : 0.0f;
#pragma unroll
      for (int j = 0; j < kFactors; ++j) {
        const float steps = grid.code(__fmul_rn(x, inverse[j])) - grid.zero;
        part[j] += measure(fabsf(fmaf(steps, scale[j], -x)));
      }
    }
#pragma unroll
    for (int j = 0; j < kFactors; ++j) sum[j] += part[j];
  }
  __shared__ float sums[kFactors][kQuantizeWarps][32];
#pragma unroll
  for (int j = 0; j < kFactors; ++j) sums[j][warp][lane] = sum[j];
  __syncthreads();
  static_assert(kFactors == kQuantizeWarps, "each warp adds up one factor");
  if (!inside || p0 + warp >= a.P) return;
  float all = 0;
#pragma unroll
  for (int w = 0; w < kQuantizeWarps; ++w) all += sums[warp][w][lane];
  a.error[(p0 + warp) * a.N + n] = all;
}

bool starts_at(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

Status quantize_columns(const QuantizeColumnsArgs& a, Stream stream) {
  if (a.R * a.N == 0) return {};
  const bool wide = a.N % 4 == 0 && (a.R == 1 || a.x_stride % 4 == 0) && starts_at(a.x, 16) && starts_at(a.scales, 16);
  const int64_t blocks = (a.R * (a.N / (wide ? 4 : 1)) + kQuantizeThreads - 1) / kQuantizeThreads;
  const int64_t most = int64_t{64} * gpu().processors;
  const auto grid = static_cast<unsigned>(blocks < most ? blocks : most);
  if (wide)
    columns_kernel<4><<<grid, kQuantizeThreads, 0, native(stream)>>>(a);
  else
    columns_kernel<1><<<grid, kQuantizeThreads, 0, native(stream)>>>(a);
  return launched();
}

Status quantize_error(const QuantizeErrorArgs& a, Stream stream) {
  if (a.N * a.P == 0) return {};
  const int64_t column_sets = (a.N + 31) / 32, factor_sets = (a.P + kFactors - 1) / kFactors;
  if (column_sets > 0x7fffffff / factor_sets) return {"more columns and factors than a grid has blocks"};
  const auto grid = static_cast<unsigned>(column_sets * factor_sets), sets = static_cast<unsigned>(column_sets);
  if (a.norm == 2.0f)
    error_kernel<<<grid, kQuantizeThreads, 0, native(stream)>>>(a, sets, Square{});
  else
    error_kernel<<<grid, kQuantizeThreads, 0, native(stream)>>>(a, sets, Power{a.norm});
  return launched();
}

}  // namespace nybble::cuda
