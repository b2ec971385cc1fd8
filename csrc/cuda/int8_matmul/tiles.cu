// Any shape, on any device: a block computes kM x 128 of y, 64 bytes of K at a time.
//
//                 n ->  [ warp 0 | warp 1 | warp 2 | warp 3 ]       K steps:  copy ... copy  |  copies of step s + 2
//                 run
//   kM rows   m v       [ warp 4 | warp 5 | warp 6 | warp 7 ]                 multiply s     |  while step s is
//   multiplied
//
// Shared memory holds a row's 64 bytes as 4 pieces of 16, piece p of row r at place p ^ (r / 2 % 4): the 8 rows that
// one ldmatrix reads are then in different banks.
#include "cuda/int8_matmul/product.cuh"

namespace nybble::cuda::int8 {
namespace {

constexpr int kThreads = 256, kN = 128, kStep = 64, kStages = 3;

__device__ int place(int row, int piece) { return row * kStep + (piece ^ (row / 2 % 4)) * 16; }

// 16 bytes from k on of a row to shared memory; where the copy is not asynchronous it is done on return.
template <bool kWide>
__device__ void copy(int8_t* to, const int8_t* row, int64_t k, int64_t K) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (kWide) {
    const int bytes = k < K ? 16 : 0;  // what is missing of the 16 becomes zeros
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
        "l"(row + (k < K ? k : 0)), "r"(bytes)
        : "memory");
    return;
  }
#endif
  *reinterpret_cast<uint4*>(to) = bytes_of<kWide>(row, k, K);
}

__device__ void close_stage() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all but the last kStages - 2 stages that were closed have arrived.
__device__ void wait_for_stage() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
#endif
}

// Four 8 x 16-byte matrices, of which lane 8i + j gives the address of row j of the i-th.
__device__ void load_matrices(unsigned (&to)[4], const int8_t* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(from)))
               : "memory");
}

template <int kM, bool kWide>
__global__ void __launch_bounds__(kThreads) tiles_kernel(Int8MatmulArgs a,      // as ops/int8_matmul.h says
                                                         unsigned row_tiles) {  // of kM rows
  constexpr int kRows = kM / 32;                                                // of 16 rows, of a warp
  __shared__ __align__(16) int8_t x[kStages][kM * kStep], w[kStages][kN * kStep];
  const int64_t m0 = blockIdx.x % row_tiles * int64_t{kM}, n0 = blockIdx.x / row_tiles * int64_t{kN};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp / 4 * (kM / 2), wn = warp % 4 * 32;
  const auto fetch = [&](int stage, int64_t k) {
#pragma unroll
    for (int i = threadIdx.x; i < (kM + kN) * 4; i += kThreads) {
      const int row = i / 4, piece = i % 4;
      if (row < kM)
        copy<kWide>(x[stage] + place(row, piece), a.x + min(m0 + row, a.M - 1) * a.x_stride, k + piece * 16, a.K);
      else
        copy<kWide>(w[stage] + place(row - kM, piece), a.weight + min(n0 + row - kM, a.N - 1) * a.K, k + piece * 16,
                    a.K);
    }
  };
  int sum[kRows][4][4] = {};
  for (int s = 0; s < kStages - 1; ++s) {
    fetch(s, s * kStep);
    close_stage();
  }
  int stage = 0;
  for (int64_t k = 0; k < a.K; k += kStep) {
    wait_for_stage();
    __syncthreads();  // everyone's copies are there, and nobody reads the stage that is filled next
    fetch((stage + kStages - 1) % kStages, k + (kStages - 1) * kStep);
    close_stage();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned left[kRows][4], right[2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        load_matrices(left[i], x[stage] + place(wm + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrices(right[j], w[stage] + place(wn + j * 16 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiply_add(sum[i][j], left[i], {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]});
    }
    stage = (stage + 1) % kStages;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t m = m0 + wm + i * 16 + half * 8 + lane / 4;
      if (m >= a.M) continue;
      const float x_scale = a.x_scale[m];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int64_t n = n0 + wn + j / 2 * 8 + lane % 4 * 2 + j % 2;
        if (n < a.N) put(a, m, n, result(a, sum[i][j / 2][half * 2 + j % 2], x_scale, n));
      }
    }
}

template <int kM, bool kWide>
Status start(const Int8MatmulArgs& a, Stream stream) {
  const int64_t row_tiles = (a.M + kM - 1) / kM, column_tiles = (a.N + kN - 1) / kN;
  if (row_tiles > 0x7fffffff / column_tiles) return {"more numbers than a grid has blocks for"};
  tiles_kernel<kM, kWide><<<static_cast<unsigned>(row_tiles * column_tiles), kThreads, 0, native(stream)>>>(
      a, static_cast<unsigned>(row_tiles));
  return launched();
}

}  // namespace

Status tiles(const Int8MatmulArgs& a, Stream stream) {
  if (a.M <= 64) return wide(a) ? start<64, true>(a, stream) : start<64, false>(a, stream);
  return wide(a) ? start<128, true>(a, stream) : start<128, false>(a, stream);
}

}  // namespace nybble::cuda::int8
