// The rows of x that few.cuh multiplies, in shared memory: as they are, normed or gated.
//
//      row 0: the block's quads of k blocks, 256 bytes each | 16 bytes, so that no two rows meet in a bank
//      row 1: ...
//      sums of x, where they are wanted: [quad][over its k blocks; over each of them][row]
//
// A quad that its part of the matrix does not fill is filled with zeros.
#pragma once
#include "cuda/codec/tile.cuh"
#include "cuda/common/async_copy.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/qmatmul/matrix.h"

namespace nybble::cuda {

// What is done to x before the product.
enum class Before : int32_t { nothing, norm, silu, gelu_tanh };

// Neighbouring k blocks of one width whose groups follow each other (matrix.h): whole, or as far as they are a block's.
// What the kernels would have to work out is worked out by the host (few.cu).
struct FewPart {
  int32_t first, count;  // k blocks
  int32_t offset;        // of the first tile from the start of a column block, in units of 64 bytes
  int32_t at;            // k blocks from the start of the segment to `first`: a multiple of 4
  int32_t group;         // of the segment's first k block
  int32_t bits;
  uint32_t inverse;           // of the k blocks a group: 2^31 / it, rounded up
  int32_t before;             // quads of the block's parts before it
  float per_quad, per_batch;  // 1 / quads(), 1 / batches()
  bool fine;                  // four k blocks may have several groups
  int8_t batch;               // log2 of how many quads a ring's slot takes

  __host__ __device__ int quads() const { return (count + 3) / 4; }
  __host__ __device__ int batches() const { return (quads() + (1 << batch) - 1) >> batch; }
  // Of k block `i` of the segment, below 2^15.
  __device__ int group_of(int i) const { return group + static_cast<int>(__umulhi(2 * i, inverse)); }
};

constexpr int kFewParts = 8, kFewSplits = 8, kFewCuts = kFewParts + kFewSplits - 1;

// A packed matrix of few segments.
struct FewMatrix {
  const uint8_t* weight;
  const uint16_t* scales;
  const float* zeros;  // nullptr: 2^(bits-1)
  int64_t column_bytes;
  int32_t K, N, G;
  int32_t parts;
  FewPart part[kFewCuts];  // segments, cut where the parts of k meet that blocks have
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

// Bytes of a row and of the sums, of so many quads.
__host__ __device__ inline int few_row_bytes(int quads) { return quads * 256 + 16; }
constexpr int kFewSums = 5;
__host__ __device__ inline int few_sums_step(int rows) { return (rows + 1) / 2 * 8 * kFewSums; }

// What a lane hands to ldmatrix for the first k block of up to 8 rows; what is not there is the last row again.
__device__ inline unsigned few_operand(unsigned shared_rows, int rows, int quads, int lane) {
  return shared_rows + min(lane % 8, rows - 1) * few_row_bytes(quads) + lane / 8 * 16;
}

constexpr int kFewScratch = 33;  // floats a row, while x is normed

template <typename T, int kThreads>  // of the block
struct FewRows {
  const FewX& a;
  const FewMatrix& m;
  uint8_t* rows;  // in shared memory
  float* scratch;
  int first_part, parts, quads;  // the block's

  // All threads of the block call it. Copies are a group of their own; when they are there, all is after the next
  // barrier of the block.
  __device__ __forceinline__ void fetch() const {
    if (a.before != Before::nothing) {
      prepare();
      return commit_copies();
    }
#pragma unroll 1
    for (int row = 0; row < a.M; ++row) {
      const unsigned to = shared_address(piece(row, 0));
      each_piece([&](int i, int k) { copy_async<16>(to + i * 16, x_row(row) + max(k, 0), k >= 0); });
    }
    commit_copies();
  }

  // Of x that is there. By tensor cores: every row of (ones) x^T is the sums.
  __device__ void sum_up(uint8_t* sums) const {
    const int lane = threadIdx.x % 32, step = few_sums_step(a.M);
    const unsigned one = pack<T>(1, 1), ones[4] = {one, one, one, one};
    const unsigned from = few_operand(shared_address(rows), a.M, quads, lane);
    for (int quad = threadIdx.x / 32; quad < quads; quad += kThreads / 32) {
      auto* to = reinterpret_cast<float2*>(sums + quad * step + lane * 8);
      float2 all = {0, 0};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float sum[4] = {};
        unsigned b[4];
        load_matrices<false>(b, from + quad * 256 + i * 64);
        multiply_add<T>(sum, ones, b[0], b[1]);
        multiply_add<T>(sum, ones, b[2], b[3]);
        if (2 * lane < a.M) to[(1 + i) * (step / kFewSums / 8)] = {sum[0], sum[1]};
        all.x += sum[0], all.y += sum[1];
      }
      if (2 * lane < a.M) *to = all;
    }
  }

 private:
  __device__ const T* x_row(int row) const { return static_cast<const T*>(a.x) + row * a.x_stride; }
  __device__ uint4* piece(int row, int i) const {
    return reinterpret_cast<uint4*>(rows + row * few_row_bytes(quads)) + i;
  }

  // Calls body(piece, the k of its first number) for the thread's pieces of 8 numbers; k is -1 where x is 0.
  template <typename Body>
  __device__ __forceinline__ void each_piece(Body body) const {
#pragma unroll 1
    for (int part = first_part; part < first_part + parts; ++part) {
      const FewPart& p = m.part[part];
      const int pieces = 16 * p.quads();
#pragma unroll 1
      for (int i = threadIdx.x; i < pieces; i += kThreads) {
        const int k = p.first * kTileRows + 8 * i;
        body(16 * p.before + i, i < 4 * p.count && k < m.K ? k : -1);
      }
    }
  }

  // What the op of its own would have written.
  __device__ void prepare() const {
    if (a.before == Before::norm) find_factors();
#pragma unroll 1
    for (int row = 0; row < a.M; ++row) {
      each_piece([&](int i, int k) {
        uint4 eight = {0, 0, 0, 0};
        if (k >= 0) {
          eight = *reinterpret_cast<const uint4*>(x_row(row) + k);
          T* v = reinterpret_cast<T*>(&eight);
#pragma unroll
          for (int j = 0; j < 8; ++j) v[j] = from_float<T>(prepared(row, to_float(v[j]), k + j));
        }
        *piece(row, i) = eight;
      });
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
