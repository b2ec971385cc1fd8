// y = x @ weight^T + bias for some rows of x on tensor cores: the weight is the left matrix, 16 of its rows at a time,
// so that the 8 columns of one instruction are rows of x.
//
//   weight, 16 rows       [ q0 | q1 | q2 | q3 | q0 | ... ]   lane 4 g + q takes 16 bytes of rows g and g + 8,
//   x, kTiles times 8 rows  [ q0 | q1 | q2 | q3 | q0 | ... ]   and the same numbers of row g of each tile of x
//
// They go to the instructions as if they were the numbers those name: a sum over K may take its terms in any order, as
// long as both sides take the same. Nothing moves between lanes, and kSteps loads of each row are in flight.
// Half numbers of one type are multiplied as they are, mixed ones as tf32, which holds both; a float is the sum of two
// tf32 numbers up to 2^-23 of it. `parts` warps of a block share a group of columns' K and add up at the end, in order.
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/wide.cuh"
#include "cuda/matmul/strategies.h"

namespace nybble::cuda {
namespace {

constexpr int kWarps = 8, kColumns = 16;

// As measured on an H200; more registers for loads leave room for fewer warps.
template <typename T, typename W, int kTiles>
constexpr int kSteps = std::is_same_v<T, W>         ? 8
                       : kTiles > 1                 ? 1
                       : sizeof(T) + sizeof(W) == 4 ? 2
                                                    : 4;

// sum += the products of V numbers of rows g, g + 8 of the weight with the same numbers of x.
template <typename T, typename W, int V>
__device__ inline void multiply(float (&sum)[4], const Words<Pack<W, V>>& upper, const Words<Pack<W, V>>& lower,
                                const Words<Pack<T, V>>& x) {
  if constexpr (std::is_same_v<T, W>) {
    const uint4 a = upper.word[0], b = lower.word[0], c = x.word[0];
    multiply_add<T>(sum, {a.x, b.x, a.y, b.y}, c.x, c.y);
    multiply_add<T>(sum, {a.z, b.z, a.w, b.w}, c.z, c.w);
  } else {
#pragma unroll
    for (int j = 0; j < V; j += 2) {
      const float a[4] = {to_float(upper.pack.v[j]), to_float(lower.pack.v[j]), to_float(upper.pack.v[j + 1]),
                          to_float(lower.pack.v[j + 1])};
      const float b[2] = {to_float(x.pack.v[j]), to_float(x.pack.v[j + 1])};
      if constexpr (sizeof(T) == 4) {
        const float high[2] = {to_tf32(b[0]), to_tf32(b[1])};
        mma_tf32(sum, a, {to_tf32(b[0] - high[0]), to_tf32(b[1] - high[1])});
        mma_tf32(sum, a, high);
      } else if constexpr (sizeof(W) == 4) {
        float high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          high[i] = to_tf32(a[i]);
          low[i] = to_tf32(a[i] - high[i]);
        }
        mma_tf32(sum, low, b);
        mma_tf32(sum, high, b);
      } else {
        mma_tf32(sum, a, b);
      }
    }
  }
}

template <typename T, typename W, int kTiles>
__global__ void __launch_bounds__(kWarps * 32) mma_rows_kernel(MatmulArgs a,  // as ops/matmul.h says
                                                               int parts,     // warps that share a group of columns
                                                               unsigned slices) {  // of kRows, next to each other
  constexpr int V = kWide<W>, kDepth = 4 * V, kRows = 8 * kTiles, S = kSteps<T, W, kTiles>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, part = warp % parts;
  const int64_t n0 = (static_cast<int64_t>(blockIdx.x / slices) * (kWarps / parts) + warp / parts) * kColumns;
  const int64_t m0 = static_cast<int64_t>(blockIdx.x % slices) * kRows;
  const int64_t share = (a.K + parts * kDepth - 1) / (parts * kDepth) * kDepth;
  const int64_t begin = share * part, end = begin + share < a.K ? begin + share : a.K;

  // Beyond the last column the last one is read again, and nothing is written.
  const auto column = [&](int64_t n) {
    return static_cast<const W*>(a.weight) + (n < a.N ? n : a.N - 1) * a.K + q * V;
  };
  const W *upper = column(n0 + g), *lower = column(n0 + g + 8);
  const T* x = static_cast<const T*>(a.x) + (m0 + g) * a.x_stride + q * V;
  // Into the second cache only: a kernel may just have made this weight.
#pragma unroll
  for (int u = 0; u < S; u += 2)  // a line is two steps
    if (begin + u * kDepth + q * V < end) {
      prefetch(upper + begin + u * kDepth);
      prefetch(lower + begin + u * kDepth);
    }
  wait_for_previous();
  let_next_begin();

  float sum[kTiles][4] = {};
  for (int64_t k0 = begin; k0 < end; k0 += S * kDepth) {
    Words<Pack<W, V>> up[S], low[S];
    Words<Pack<T, V>> in[S][kTiles];
    float piece[kTiles][4] = {};
#pragma unroll
    for (int u = 0; u < S; ++u) {
      const int64_t k = k0 + u * kDepth;
      up[u].clear();
      low[u].clear();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) in[u][t].clear();
      if (k + q * V < end) {
        up[u].pack = load_once<W, V>(upper + k);
        low[u].pack = load_once<W, V>(lower + k);
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
          if (m0 + 8 * t + g < a.M) in[u][t].pack = read<T, V>(x + 8 * t * a.x_stride + k);
      }
    }
#pragma unroll
    for (int u = 0; u < S; ++u)
#pragma unroll
      for (int t = 0; t < kTiles; ++t) multiply<T, W, V>(piece[t], up[u], low[u], in[u][t]);
    // Tensor cores cut off what they add up; added to the sum here, only a piece of K suffers from that.
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[t][i] += piece[t][i];
  }

  // sum[t]: of columns g, g, g + 8, g + 8 and rows 2 q, 2 q + 1, 2 q, 2 q + 1
  __shared__ float partial[kWarps][kRows][kColumns + 1];
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp][8 * t + 2 * q + i % 2][g + i / 2 * 8] = sum[t][i];
  __syncthreads();
  if (part != 0) return;
  const int c = lane % kColumns;
  if (n0 + c >= a.N) return;
  const float bias = a.bias == nullptr ? 0.0f : to_float(static_cast<const W*>(a.bias)[n0 + c]);
  for (int m = lane / kColumns; m < kRows && m0 + m < a.M; m += 2) {
    float all = 0;
    for (int p = 0; p < parts; ++p) all += partial[warp + p][m][c];
    static_cast<T*>(a.y)[(m0 + m) * a.N + n0 + c] = from_float<T>(all + bias);
  }
}

template <typename T, typename W, int kTiles>
Status launch_tiles(const MatmulArgs& a, Stream stream) {
  constexpr int kRows = 8 * kTiles, kDepth = 4 * kWide<W>;
  const int64_t groups = (a.N + kColumns - 1) / kColumns, slices = (a.M + kRows - 1) / kRows;
  // Enough warps to keep every multiprocessor's loads in flight, as long as each has enough of K to itself.
  const int64_t wanted = 32 * gpu().processors;
  int parts = 1;
  while (parts < kWarps && groups * slices * parts < wanted && a.K >= 16 * parts * kDepth) parts *= 2;
  const int64_t blocks = (groups + kWarps / parts - 1) / (kWarps / parts);
  if (slices > 0x7fffffff / blocks) return {"matmul: more results than a grid has blocks for"};
  return launch(mma_rows_kernel<T, W, kTiles>, dim3(static_cast<unsigned>(blocks * slices)), dim3(kWarps * 32), 0,
                stream, gpu().sm >= 90, a, parts, static_cast<unsigned>(slices));
}

}  // namespace

bool mma_rows_fit(const MatmulArgs& a) {
  const int V = static_cast<int>(16 / size_of(a.w_dtype));
  const bool floats = a.x_dtype == DType::f32 && a.w_dtype == DType::f32;
  return gpu().sm >= 80 && !floats && a.K % V == 0 && wide(a.x, a.x_dtype, a.x_stride, V) &&
         wide(a.weight, a.w_dtype, a.K, V);
}

Status matmul_mma_rows(const MatmulArgs& a, Stream stream) {
  return with_type(a.x_dtype, [&](auto x) {
    return with_type(a.w_dtype, [&](auto w) -> Status {
      using T = typename decltype(x)::type;
      using W = typename decltype(w)::type;
      if constexpr (sizeof(T) + sizeof(W) == 8) {
        return {"matmul: two float32 matrices are none of this product's"};
      } else {
        if (a.M <= 8) return launch_tiles<T, W, 1>(a, stream);
        if constexpr (!std::is_same_v<T, W>) return launch_tiles<T, W, 4>(a, stream);
        return {"matmul: more than 8 rows of one type are the library's"};
      }
    });
  });
}

}  // namespace nybble::cuda
