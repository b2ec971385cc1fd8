// Up to 16 rows of x: reading the weights is all the work. They go from memory to registers in whole 16-byte pieces.
//
//             K ->  [ warp 0 | warp 1 | ... | warp 0 | ... ]   64 bytes each time: 4 lanes a row, 16 bytes a lane
//   weight    n v     kTiles * 16 rows a block: A of the product
//   x         m       8 or 16 rows: B of the product, columns from M on zeros
//
// A product adds over k in any order, so both sides give a lane's 16 bytes to two products as they lie: its bytes 0-3
// stand at "k 4t", 4-7 at "k 16 + 4t" of the first, 8-11 and 12-15 of the second. The warps' sums are added at the end.
#include "cuda/int8_matmul/product.cuh"

namespace nybble::cuda::int8 {
namespace {

constexpr int kStep = 64;  // bytes of a row at a time

// Weights are read once: they need no place in the first cache, where x stays. Not ld.global.nc: the assembler would
// move that behind wait_for_previous().
template <bool kWide>
__device__ uint4 weights_of(const int8_t* row, int64_t k, int64_t K) {
  if constexpr (kWide) {
    uint4 all{};
#ifdef __HIP__
    if (k < K) all = *reinterpret_cast<const uint4*>(row + k);
#else
    if (k < K)
      asm volatile("ld.global" NYBBLE_NO_ALLOCATE ".v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(all.x), "=r"(all.y), "=r"(all.z), "=r"(all.w)
                   : "l"(row + k));
#endif
    return all;
  } else {
    return bytes_of<false>(row, k, K);
  }
}

template <int kTiles, int kHalves, int kWarps, int kUnroll, bool kWide>
__global__ void __launch_bounds__(kWarps * 32) few_rows_kernel(Int8MatmulArgs a) {  // as ops/int8_matmul.h says
  constexpr int kN = kTiles * 16, kM = kHalves * 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4;
  const int64_t n0 = int64_t{blockIdx.x} * kN;
  const int share = lane % 4 * 16;  // of a lane in kStep bytes; a loop runs for all lanes alike
  const int64_t K = a.K - share;
  const int8_t* w[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles * 2; ++i) w[i / 2][i % 2] = a.weight + min(n0 + i * 8 + group, a.N - 1) * a.K + share;
  const int8_t* x[kHalves];
#pragma unroll
  for (int h = 0; h < kHalves; ++h) x[h] = a.x + (h * 8 + group) * a.x_stride + share;

  int sum[kTiles][kHalves][4] = {};
  uint4 left[kUnroll][kTiles][2], right[kUnroll][kHalves];
  const auto load_weights = [&](int64_t k) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int i = 0; i < kTiles * 2; ++i)
        left[u][i / 2][i % 2] = weights_of<kWide>(w[i / 2][i % 2], k + u * kWarps * kStep, K);
  };
  load_weights(warp * kStep);  // no kernel writes weights
  wait_for_previous();
  let_next_begin();
  for (int64_t k = warp * kStep; k < a.K; k += kUnroll * kWarps * kStep) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        right[u][h] = h * 8 + group < a.M ? bytes_of<kWide>(x[h], k + u * kWarps * kStep, K) : uint4{};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          const uint4 top = left[u][i][0], bottom = left[u][i][1], column = right[u][h];
          multiply_add(sum[i][h], {top.x, bottom.x, top.y, bottom.y}, {column.x, column.y});
          multiply_add(sum[i][h], {top.z, bottom.z, top.w, bottom.w}, {column.z, column.w});
        }
    load_weights(k + kUnroll * kWarps * kStep);
  }

  __shared__ int sums[kWarps][kN][kM + 1];  // the odd width keeps readers down a column in different banks
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[warp][i * 16 + j / 2 * 8 + group][h * 8 + lane % 4 * 2 + j % 2] = sum[i][h][j];
  __syncthreads();
  for (int i = threadIdx.x; i < kN * kM; i += kWarps * 32) {
    const int n = i % kN, m = i / kN;
    if (m >= a.M || n0 + n >= a.N) continue;
    int all = 0;
#pragma unroll
    for (int s = 0; s < kWarps; ++s) all += sums[s][n][m];
    put(a, m, n0 + n, result(a, all, a.x_scale[m], a.w_scale[n0 + n], a.bias ? a.bias[n0 + n] : 0.0f));
  }
}

template <int kTiles, int kHalves, int kWarps, int kUnroll, bool kWide>
Status start(const Int8MatmulArgs& a, Stream stream) {
  const int64_t blocks = (a.N + kTiles * 16 - 1) / (kTiles * 16);
  return launch(few_rows_kernel<kTiles, kHalves, kWarps, kUnroll, kWide>, dim3(static_cast<unsigned>(blocks)),
                dim3(kWarps * 32), 0, stream, gpu().sm >= 90, a);
}

}  // namespace

// On Hopper only where the other kernels' tiles would leave processors idle (H200, one row: 4096 x 4096 here 5.5 us,
// there 7.5; 14336 x 4096 19 and 16 us), and not beyond 8 rows.
bool supports_few_rows(const Int8MatmulArgs& a) {
  if (a.M > 16 || a.N > int64_t{0x7fffffff} * 16) return false;
  if (!supports_wgmma_many(a)) return true;
  const int64_t tiles = (a.N + 127) / 128 * (supports_wgmma_some(a) ? 2 : 1);
  return a.M <= 8 && tiles < gpu().processors * 3 / 4;
}

Status few_rows(const Int8MatmulArgs& a, Stream stream) {
  if (!wide(a)) return start<1, 2, 8, 1, false>(a, stream);
  if (a.M > 8) return start<1, 2, 16, 2, true>(a, stream);
  // Two tiles of weights for one of x read x half as often, where there are blocks enough for all processors.
  if (a.N / 32 >= gpu().processors * 7 / 8) return start<2, 1, 16, 2, true>(a, stream);
  return start<1, 1, 16, 2, true>(a, stream);
}

}  // namespace nybble::cuda::int8
