// Any shape, on any device: a block computes kM x 128 of y, 64 bytes of K at a time.
//
//                 n ->  [ warp 0 | warp 1 | warp 2 | warp 3 ]      while step s is multiplied,
//   kM rows   m v       [ warp 4 | warp 5 | warp 6 | warp 7 ]      the copies of step s + 2 are on their way
//
// Where there are few tiles, several blocks share a tile's K and a second kernel adds up their sums, which are whole
// numbers: the same in any order. Shared memory holds a row's 64 bytes as 4 pieces of 16, piece p of row r at place p ^
// (r / 2 % 4): the 8 rows that one ldmatrix reads are then in different banks.
#include "cuda/int8_matmul/product.cuh"

namespace nybble::cuda::int8 {
namespace {

constexpr int kThreads = 256, kN = 128, kStep = 64, kStages = 3;

__device__ int place(int row, int piece) { return row * kStep + (piece ^ (row / 2 % 4)) * 16; }

// 16 bytes from k on of a row to shared memory; where the copy is not asynchronous it is done on return.
template <bool kWide>
__device__ void copy(int8_t* to, const int8_t* row, int64_t k, int64_t K) {
#if __CUDA_ARCH__ >= 800
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
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all but the last kStages - 2 stages that were closed have arrived.
__device__ void wait_for_stage() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
#endif
}

// Four 8 x 16-byte matrices, of which lane 8i + j gives the address of row j of the i-th.
__device__ void load_matrices(unsigned (&to)[4], const int8_t* from) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(from)))
               : "memory");
#else
  const int lane = threadIdx.x % 32;
  const auto address = reinterpret_cast<unsigned long long>(from);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto row = reinterpret_cast<const unsigned*>(__shfl_sync(0xffffffffu, address, i * 8 + lane / 4));
    to[i] = row[lane % 4];
  }
#endif
}

template <int kM, bool kWide>
__global__ void __launch_bounds__(kThreads) tiles_kernel(
    Int8MatmulArgs a,             // as ops/int8_matmul.h says
    unsigned row_tiles,           // of kM rows
    unsigned steps_a_share) {     // of K, of the blocks that blockIdx.y counts; more than one: sums to a.scratch
  constexpr int kRows = kM / 32;  // of 16 rows, of a warp
  constexpr int kCopies = (kM + kN) * (kStep / 16) / kThreads;         // of a thread, a step
  __shared__ __align__(16) int8_t memory[kStages][(kM + kN) * kStep];  // rows of x, then rows of weight
  const int64_t m0 = blockIdx.x % row_tiles * int64_t{kM}, n0 = blockIdx.x / row_tiles * int64_t{kN};
  const int64_t first = int64_t{blockIdx.y} * steps_a_share * kStep;
  const int64_t last = min(a.K, first + int64_t{steps_a_share} * kStep);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp / 4 * (kM / 2), wn = warp % 4 * 32;
  const int piece = threadIdx.x % 4;
  const int8_t* from[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int row = (threadIdx.x + i * kThreads) / 4;
    from[i] = row < kM ? a.x + min(m0 + row, a.M - 1) * a.x_stride : a.weight + min(n0 + row - kM, a.N - 1) * a.K;
  }
  const auto fetch = [&](int stage, int64_t k) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      copy<kWide>(memory[stage] + place((threadIdx.x + i * kThreads) / 4, piece), from[i], k + piece * 16, last);
    close_stage();
  };
  int sum[kRows][4][4] = {};
  for (int s = 0; s < kStages - 1; ++s) fetch(s, first + s * kStep);
  int stage = 0;
  for (int64_t k = first; k < last; k += kStep) {
    wait_for_stage();
    __syncthreads();  // everyone's copies are there, and nobody reads the stage that is filled next
    fetch((stage + kStages - 1) % kStages, k + (kStages - 1) * kStep);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned left[kRows][4], right[2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        load_matrices(left[i], memory[stage] + place(wm + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrices(right[j],
                      memory[stage] + place(kM + wn + j * 16 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiply_add(sum[i][j], left[i], {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]});
    }
    stage = (stage + 1) % kStages;
  }
  const auto column = [&](int j) { return n0 + wn + j / 2 * 8 + lane % 4 * 2 + j % 2; };
  float w_scale[8] = {}, bias[8] = {};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (gridDim.y > 1 || column(j) >= a.N) continue;
    w_scale[j] = a.w_scale[column(j)];
    if (a.bias) bias[j] = a.bias[column(j)];
  }
#pragma unroll
  for (int i = 0; i < 2 * kRows; ++i) {
    const int64_t m = m0 + wm + i * 8 + lane / 4;
    if (m >= a.M) break;
    const float x_scale = a.x_scale[m];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int64_t n = column(j);
      const int all = sum[i / 2][j / 2][i % 2 * 2 + j % 2];
      if (n >= a.N) continue;
      if (gridDim.y > 1)
        a.scratch[(blockIdx.y * a.M + m) * a.N + n] = all;
      else
        put(a, m, n, result(a, all, x_scale, w_scale[j], bias[j]));
    }
  }
}

// Adds up what the shares of K left in a.scratch, a thread an element.
__global__ void __launch_bounds__(kThreads) join_kernel(Int8MatmulArgs a,   // as ops/int8_matmul.h says
                                                        unsigned shares) {  // scratch: [shares, M, N]
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x, m = blockIdx.y;
  if (n >= a.N) return;
  int all = 0;
  for (unsigned s = 0; s < shares; ++s) all += a.scratch[(s * a.M + m) * a.N + n];
  put(a, m, n, result(a, all, a.x_scale[m], a.w_scale[n], a.bias ? a.bias[n] : 0.0f));
}

int rows_of_tile(const Int8MatmulArgs& a) { return a.M <= 64 ? 64 : 128; }

// Few tiles leave processors idle: their K is shared out, 8 steps or more a share.
unsigned shares_of(const Int8MatmulArgs& a) {
  const int64_t tiles = (a.M + rows_of_tile(a) - 1) / rows_of_tile(a) * ((a.N + kN - 1) / kN);
  unsigned shares = 1;
  while (shares < 16 && tiles * shares < gpu().processors && a.K / kStep >= 16 * shares) shares *= 2;
  return shares;
}

template <int kM, bool kWide>
Status start(const Int8MatmulArgs& a, Stream stream, unsigned shares) {
  const int64_t row_tiles = (a.M + kM - 1) / kM, column_tiles = (a.N + kN - 1) / kN;
  if (row_tiles > 0x7fffffff / column_tiles) return {"more numbers than a grid has blocks for"};
  const auto steps = static_cast<unsigned>((a.K + kStep - 1) / kStep);
  const unsigned steps_a_share = (steps + shares - 1) / shares;
  tiles_kernel<kM, kWide>
      <<<dim3(static_cast<unsigned>(row_tiles * column_tiles), shares), kThreads, 0, native(stream)>>>(
          a, static_cast<unsigned>(row_tiles), steps_a_share);
  if (shares > 1)
    join_kernel<<<dim3(static_cast<unsigned>((a.N + kThreads - 1) / kThreads), static_cast<unsigned>(a.M)), kThreads, 0,
                  native(stream)>>>(a, shares);
  return launched();
}

}  // namespace

int64_t tiles_scratch(const Int8MatmulArgs& a) {
  const unsigned shares = shares_of(a);
  return shares > 1 ? shares * a.M * a.N : 0;
}

Status tiles(const Int8MatmulArgs& a, Stream stream) {
  const unsigned shares = shares_of(a);
  if (rows_of_tile(a) == 64) return wide(a) ? start<64, true>(a, stream, shares) : start<64, false>(a, stream, shares);
  return wide(a) ? start<128, true>(a, stream, shares) : start<128, false>(a, stream, shares);
}

}  // namespace nybble::cuda::int8
