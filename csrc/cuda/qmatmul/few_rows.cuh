// The rows of x that few.cuh multiplies, in shared memory: as they are, normed or gated.
//
//      row 0: k blocks of the block, 64 bytes each | 16 bytes, so that no two rows meet in a bank
//      row 1: ...
//      sums of x over each four k blocks, where the matrix has zeros: [four k blocks][row]
#pragma once
#include "cuda/codec/tile.cuh"
#include "cuda/common/async_copy.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/qmatmul/matrix.h"

namespace nybble::cuda {

// What is done to x before the product.
enum class Before : int32_t { nothing, norm, silu, gelu_tanh };

// A packed matrix of one width whose groups are of 4, 8, 12 ... k blocks (matrix.h has the others).
struct FewMatrix {
  const uint8_t* weight;
  const uint16_t* scales;
  const float* zeros;  // nullptr: 2^(bits-1)
  int64_t column_bytes;
  int32_t K, N, KB, G;
  int32_t per;  // k blocks a group
  uint32_t inverse;

  // at / per
  __device__ int group_of(int at) const { return static_cast<int>(__umulhi(at, inverse)); }
};

struct FewX {
  const void* x;  // [M, K], with a gate [M, 2 K]; K, the stride and where it lies let 8 numbers be read at a time
  int64_t x_stride;
  Before before;
  const void* norm;  // [K] or nullptr
  DType norm_dtype;
  float eps;
  int32_t norm_threads;  // that the op of its own adds up the squares with: the same sums, the same bits
  int32_t M;
};

// Bytes of the rows, and of their sums, of `blocks` k blocks.
__host__ __device__ inline int few_row_bytes(int blocks) { return blocks * 64 + 16; }
__host__ __device__ inline int few_sums_step(int rows) { return (rows + 1) / 2 * 8; }
__host__ __device__ inline int few_sums_bytes(int blocks, int rows) { return blocks / 4 * few_sums_step(rows); }
constexpr int kFewScratch = 33;  // floats a row, while x is normed

template <typename T, int kThreads>  // of the block
struct FewRows {
  const FewX& a;
  const FewMatrix& m;
  uint8_t* rows;  // in shared memory
  uint8_t* sums;  // nullptr: not wanted
  float* scratch;
  int first, blocks;  // k blocks

  // All threads of the block call it, and later finish(). All is there after the next barrier of the block.
  __device__ __forceinline__ void fetch() const {
    if (a.before != Before::nothing) return prepare();
    const unsigned to = shared_address(piece(0, threadIdx.x));
    const T* from = x_row(0) + (first * 4 + threadIdx.x) * 8;
#pragma unroll 1
    for (int row = 0; row < a.M; ++row) {
#pragma unroll 1
      for (int i = threadIdx.x, done = 0; i < 4 * blocks; i += kThreads, done += kThreads)
        copy_async<16>(to + row * few_row_bytes(blocks) + done * 16, from + row * a.x_stride + done * 8,
                       (first * 4 + i) * 8 < m.K);
    }
    commit_copies();
  }
  __device__ __forceinline__ void finish() const {
    wait_for_copies<0>();
    if (sums != nullptr) sum_up();
  }

 private:
  __device__ const T* x_row(int row) const { return static_cast<const T*>(a.x) + row * a.x_stride; }
  __device__ uint4* piece(int row, int i) const {
    return reinterpret_cast<uint4*>(rows + row * few_row_bytes(blocks)) + i;
  }

  __device__ void sum_up() const {
    __syncthreads();
    const int step = few_sums_step(a.M), pieces = 4 * blocks;
    for (int row = 0; row < a.M; ++row) {
      for (int i = threadIdx.x; i < (pieces + 31) / 32 * 32; i += kThreads) {
        float sum = 0;
        if (i < pieces) {
          const uint4 eight = *piece(row, i);
          const T* v = reinterpret_cast<const T*>(&eight);
#pragma unroll
          for (int j = 0; j < 8; ++j) sum += to_float(v[j]);
        }
        // Four k blocks are sixteen neighbouring threads'.
#pragma unroll
        for (int other = 1; other < 16; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
        if (i < pieces && i % 16 == 0) *reinterpret_cast<float*>(sums + i / 16 * step + row * 4) = sum;
      }
    }
  }

  // What the op of its own would have written.
  __device__ void prepare() const {
    if (a.before == Before::norm) find_factors();
#pragma unroll 1
    for (int row = 0; row < a.M; ++row) {
#pragma unroll 1
      for (int i = threadIdx.x; i < 4 * blocks; i += kThreads) {
        const int k = (first * 4 + i) * 8;
        uint4 eight = {0, 0, 0, 0};
        if (k < m.K) {
          eight = *reinterpret_cast<const uint4*>(x_row(row) + k);
          T* v = reinterpret_cast<T*>(&eight);
#pragma unroll
          for (int j = 0; j < 8; ++j) v[j] = from_float<T>(prepared(row, to_float(v[j]), k + j));
        }
        *piece(row, i) = eight;
      }
    }
  }

  __device__ float prepared(int row, float v, int k) const {
    if (a.before == Before::norm) {
      const float weight = a.norm_dtype == DType::f32 ? static_cast<const float*>(a.norm)[k]
                                                      : to_float(static_cast<const T*>(a.norm)[k]);
      return v * scratch[kFewScratch * row + 32] * weight;
    }
    const float u = a.before == Before::silu ? v : 2.0f * (0.7978845608028654f * (v + 0.044715f * v * v * v));
    return v / (1.0f + expf(-u)) * to_float(x_row(row)[m.K + k]);
  }

  // 1 / sqrt(mean(x^2) + eps) of every row, summed up as cuda/norm.cu does: the normed x has the same bits.
  __device__ void find_factors() const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, virtual_warps = a.norm_threads / 32;
    for (int i = warp; i < a.M * virtual_warps; i += kThreads / 32) {
      const int row = i / virtual_warps, w = i % virtual_warps;
      float squares = 0;
      for (int k = (32 * w + lane) * 8; k < m.K; k += 8 * a.norm_threads) {
        const uint4 eight = *reinterpret_cast<const uint4*>(x_row(row) + k);
        const T* v = reinterpret_cast<const T*>(&eight);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += to_float(v[j]) * to_float(v[j]);
      }
      squares = warp_reduce<Add>(squares);
      if (lane == 0) scratch[kFewScratch * row + w] = squares;
    }
    __syncthreads();
    if (threadIdx.x < a.M) {
      float all = 0;
      for (int w = 0; w < virtual_warps; ++w) all += scratch[kFewScratch * threadIdx.x + w];
      scratch[kFewScratch * threadIdx.x + 32] = rsqrtf(all / static_cast<float>(m.K) + a.eps);
    }
    __syncthreads();
  }
};

}  // namespace nybble::cuda
