// y = f(x) @ W + bias + add for few rows of x: as fast as the weights can be read. The kernel; few.cu chooses what it
// is launched with.
//
//   y^T = W^T x^T: a decoded tile is two operands A (16 columns of W by 16 k) as it stands, x^T is B (16 k by 8 rows)
//
// A block, or a cluster of `splits` blocks that share out k, has some column blocks for itself. Its warps share out k:
//
//                      k of the block
//      +--------+--------+--------+-- ... --+---------+
//      | warp 0 | warp 1 | warp 2 |         | warp 15 |   column block
//      +--------+--------+--------+-- ... --+---------+
//      | warp 0 | warp 1 |                                the next
//
// A warp reads tiles from global memory straight into registers, a chunk while it multiplies the one before: no barrier
// and no copy stands between the memory and the tensor cores. It leaves the sums of each column block in shared memory;
// after a batch of column blocks they are added up in order. Weights are fetched before the kernel before this one is
// over; x is waited for. Codes less 2^(bits-1) are exact operands; float32 sums of a group are scaled. The sums of a
// row depend on K, N and the GPU alone, not on the other rows.
#pragma once
#include "cuda/codec/tile.cuh"
#include "cuda/common/cluster.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/qmatmul/matrix.h"

namespace nybble::cuda {

constexpr int kFewWarps = 16, kFewThreads = 32 * kFewWarps;
constexpr int kFewPadding = 16;  // k blocks of zeros after x: the most tiles of a chunk

// What is done to x before the product.
enum class Before : int32_t { nothing, norm, silu, gelu_tanh };

struct FewArgs {
  Matrix m;
  const void* x;  // [M, K], with a gate [M, 2 K]
  int64_t x_stride;
  Before before;
  bool vectors;      // x may be read 8 numbers at a time
  const void* norm;  // [K] or nullptr
  DType norm_dtype;
  float eps;
  int32_t norm_threads;  // that the op of its own adds up the squares with: the same sums, the same bits
  const void *bias, *add;
  int64_t add_stride;
  void* y;          // [M, N]
  int32_t M;        // up to 8 * kRT
  int32_t splits;   // blocks of a cluster
  int32_t columns;  // column blocks of a cluster, at most
  int32_t batch;    // column blocks that the warps' sums have room for
};

// A chunk of tiles on its way, with its scales. kFine: each tile has scales of its own; else each four have. As many
// tiles as two chunks and the sums leave registers for.
template <int kBits, bool kFine>
struct Chunk {
  static constexpr int kTiles = (kBits <= 2 ? 16 : kBits <= 6 ? 8 : 4) / (kFine && kBits <= 6 ? 2 : 1);
  static constexpr int kScaled = kFine ? 1 : 4;
  TileLane<kBits> tiles[kTiles];
  uint16_t scale[kTiles / kScaled][2];  // of columns g and g + 8

  // `at`: the first tile's number within the segment.
  __device__ __forceinline__ void fetch(const Matrix& m, const Segment& s, int64_t column, int at, int end, int lane) {
    const uint8_t* from = m.weight + column * m.column_bytes + 64ll * (s.offset + at * kBits);
    const uint16_t* scales = m.scales + (column * m.G + s.group) * kTileColumns + lane / 4;
    if (at + kTiles <= end)
      fetch_some<true>(s, from, scales, at, kTiles, lane);
    else
      fetch_some<false>(s, from, scales, at, end - at, lane);
  }

  // kFull: all tiles are there, and nothing stands between the loads. Else the last one stands for those that are not,
  // with scales of 0.
  template <bool kFull>
  __device__ __forceinline__ void fetch_some(const Segment& s, const uint8_t* from, const uint16_t* scales, int at,
                                             int count, int lane) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) tiles[i].fetch(from + (kFull ? i : min(i, count - 1)) * 64 * kBits, lane);
#pragma unroll
    for (int q = 0; q < kTiles / kScaled; ++q) {
      scale[q][0] = scale[q][1] = 0;
      if (!kFull && q * kScaled >= count) continue;
      const uint16_t* there = scales + s.group_of(at + q * kScaled) * kTileColumns;
#pragma unroll
      for (int v = 0; v < 2; ++v) asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(scale[q][v]) : "l"(there + 8 * v));
    }
  }

  __device__ float scale_of(int q, int v) const { return __half2float(__ushort_as_half(scale[q][v])); }
};

template <typename T, int kRT>  // kRT: tiles of 8 rows
struct FewBlock {
  const FewArgs& a;
  const Matrix& m;
  uint8_t* shared;
  int lane, warp, rank;
  int column_first, column_last;  // column blocks of the cluster
  int k_first, k_last;            // k blocks of the block, multiples of 4

  __device__ FewBlock(const FewArgs& args, uint8_t* memory)
      : a(args), m(args.m), shared(memory), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {
    rank = a.splits > 1 ? cluster_rank() : 0;
    const int clusters = gridDim.x / a.splits, cluster = blockIdx.x / a.splits;
    const int NB = (m.N + kTileColumns - 1) / kTileColumns;
    column_first = static_cast<int>(static_cast<int64_t>(NB) * cluster / clusters);
    column_last = static_cast<int>(static_cast<int64_t>(NB) * (cluster + 1) / clusters);
    const int quads = (m.KB + 3) / 4;
    k_first = quads * rank / a.splits * 4;
    k_last = min(m.KB, quads * (rank + 1) / a.splits * 4);
  }

  // Shared memory: x [k block][row][t][8], so that lane 4 g + t reads the B of a whole tile, row g, in one piece: k =
  // 2t, 2t+1, and those 8, 16 and 24 further; sums of x [k block][row], where there are zeros; the warps' sums; the
  // block's.
  __device__ int x_step() const { return a.M * 64; }
  __device__ int sums_step() const { return (a.M + 1) / 2 * 8; }
  __device__ int most_blocks() const { return ((m.KB + 3) / 4 + a.splits - 1) / a.splits * 4 + kFewPadding; }
  __device__ uint8_t* x_sums() const { return shared + most_blocks() * x_step(); }
  __device__ float* warp_sums(int column, int w) const {  // [column of the batch][warp][row][16]
    const int offset = most_blocks() * (m.zeros == nullptr ? 0 : sums_step());
    return reinterpret_cast<float*>(x_sums() + (offset + 15) / 16 * 16) + (column * kFewWarps + w) * a.M * kTileColumns;
  }
  __device__ float* block_sums() const { return warp_sums(a.batch, 0); }  // [column of the batch][row][16]

  // ---- x

  __device__ const T* x_row(int row) const { return static_cast<const T*>(a.x) + row * a.x_stride; }

  __device__ float norm_weight(int k) const {
    if (a.norm_dtype == DType::f32) return static_cast<const float*>(a.norm)[k];
    if (a.norm_dtype == DType::f16) return to_float(static_cast<const __half*>(a.norm)[k]);
    return to_float(static_cast<const __nv_bfloat16*>(a.norm)[k]);
  }

  // Where the warps' sums come later: 33 numbers of each row, the last its norm's factor.
  __device__ float* scratch(int row) const { return warp_sums(0, 0) + 33 * row; }

  // 1 / sqrt(mean(x^2) + eps) of every row, summed up as cuda/norm.cu does: the normed x has the same bits.
  __device__ void find_factors() {
    const int virtual_warps = a.norm_threads / 32;
    for (int i = warp; i < a.M * virtual_warps; i += kFewWarps) {
      const int row = i / virtual_warps, w = i % virtual_warps;
      float squares = 0;
      for (int k = (32 * w + lane) * 8; k < m.K; k += 8 * a.norm_threads) {
        const uint4 piece = *reinterpret_cast<const uint4*>(x_row(row) + k);
        const T* v = reinterpret_cast<const T*>(&piece);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += to_float(v[j]) * to_float(v[j]);
      }
      squares = warp_reduce<Add>(squares);
      if (lane == 0) scratch(row)[w] = squares;
    }
    __syncthreads();
    if (threadIdx.x < a.M) {
      float all = 0;
      for (int w = 0; w < virtual_warps; ++w) all += scratch(threadIdx.x)[w];
      scratch(threadIdx.x)[32] = rsqrtf(all / static_cast<float>(m.K) + a.eps);
    }
    __syncthreads();
  }

  // What the op of its own would have written.
  __device__ T gated(float v, float up) const {
    const float u = a.before == Before::silu ? v : 2.0f * (0.7978845608028654f * (v + 0.044715f * v * v * v));
    return from_float<T>(v / (1.0f + expf(-u)) * up);
  }

  // Eight numbers of a row from packed row k on, as they are multiplied.
  __device__ void load_piece(const T* from, float factor, int k, T (&v)[8]) const {
    alignas(16) T up[8] = {};
    int at[8];
    const bool whole = m.perm == nullptr && a.vectors && k + 8 <= m.K, gate = a.before >= Before::silu;
#pragma unroll
    for (int j = 0; j < 8; ++j) at[j] = m.perm == nullptr ? k + j : m.perm[k + j];
    if (whole) {
      *reinterpret_cast<uint4*>(v) = *reinterpret_cast<const uint4*>(from + k);
      if (gate) *reinterpret_cast<uint4*>(up) = *reinterpret_cast<const uint4*>(from + m.K + k);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const bool there = at[j] >= 0 && at[j] < m.K;
        v[j] = there ? from[at[j]] : from_float<T>(0);
        if (gate) up[j] = there ? from[m.K + at[j]] : from_float<T>(0);
      }
    }
    if (a.before == Before::nothing) return;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (at[j] < 0 || at[j] >= m.K) continue;
      v[j] =
          gate ? gated(to_float(v[j]), to_float(up[j])) : from_float<T>(to_float(v[j]) * factor * norm_weight(at[j]));
    }
  }

  __device__ void stage_x() {
    if (a.before == Before::norm) find_factors();
    const int pieces = (k_last - k_first) * 4;
#pragma unroll 1
    for (int row = 0; row < a.M; ++row) {
      const float factor = a.before == Before::norm ? scratch(row)[32] : 1.0f;
#pragma unroll 1
      for (int i = threadIdx.x; i < pieces; i += kFewThreads) {
        alignas(16) T v[8];
        load_piece(x_row(row), factor, (k_first * 4 + i) * 8, v);
        uint8_t* to = shared + i / 4 * x_step() + row * 64 + i % 4 * 4;
#pragma unroll
        for (int t = 0; t < 4; ++t) *reinterpret_cast<uint32_t*>(to + t * 16) = reinterpret_cast<const uint32_t*>(v)[t];
      }
    }
    const int real = (k_last - k_first) * x_step() / 16, all = most_blocks() * x_step() / 16;
    for (int i = real + threadIdx.x; i < all; i += kFewThreads) reinterpret_cast<uint4*>(shared)[i] = uint4{};
    __syncthreads();
    if (m.zeros == nullptr) return;
#pragma unroll 1
    for (int i = threadIdx.x; i < most_blocks() * a.M; i += kFewThreads) {
      const int kb = i / a.M, row = i % a.M;
      const T* v = reinterpret_cast<const T*>(shared + kb * x_step() + row * 64);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kTileRows; ++j) sum += to_float(v[j]);
      *reinterpret_cast<float*>(x_sums() + kb * sums_step() + row * 4) = sum;
    }
    __syncthreads();
  }

  // ---- the product

  // total += the chunk's share; kb: its first k block within the block's.
  template <int kBits, bool kFine>
  __device__ __forceinline__ void multiply(Chunk<kBits, kFine>& chunk, int kb, float (&total)[kRT][4]) const {
    using C = Chunk<kBits, kFine>;
    const uint8_t* x[kRT];
#pragma unroll
    for (int r = 0; r < kRT; ++r) x[r] = shared + kb * x_step() + min(8 * r + lane / 4, a.M - 1) * 64 + lane % 4 * 16;
#pragma unroll
    for (int q = 0; q < C::kTiles / C::kScaled; ++q) {
      float sums[2][kRT][4] = {};  // of the even and the odd operands: two chains of products, not one
#pragma unroll
      for (int i = 0; i < C::kScaled; ++i) {
        const int tile = q * C::kScaled + i;
        typename Pair<T>::type pairs[8];
        chunk.tiles[tile].spread();
        decode<kBits, T, 1 << (kBits - 1)>(chunk.tiles[tile], pairs);
        const auto* w = reinterpret_cast<const unsigned*>(pairs);
        const unsigned even[4] = {w[0], w[1], w[2], w[3]}, odd[4] = {w[4], w[5], w[6], w[7]};
#pragma unroll
        for (int r = 0; r < kRT; ++r) {
          const uint4 b = *reinterpret_cast<const uint4*>(x[r] + tile * x_step());
          multiply_add<T>(sums[0][r], even, b.x, b.y);
          multiply_add<T>(sums[1][r], odd, b.z, b.w);
        }
      }
#pragma unroll
      for (int r = 0; r < kRT; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          total[r][c] = fmaf(chunk.scale_of(q, c / 2), sums[0][r][c] + sums[1][r][c], total[r][c]);
    }
  }

  // What a zero point other than 2^(bits-1) changes: total += scale * (2^(bits-1) - zero) * sum of x.
  template <int kBits, bool kFine>
  __device__ __forceinline__ void move_zeros(const Chunk<kBits, kFine>& chunk, const Segment& s, int64_t column, int at,
                                             int kb, float (&total)[kRT][4]) const {
    using C = Chunk<kBits, kFine>;
#pragma unroll
    for (int q = 0; q < C::kTiles / C::kScaled; ++q) {
      const float* zeros =
          m.zeros + (column * m.G + s.group + s.group_of(at + q * C::kScaled)) * kTileColumns + lane / 4;
      const float off[2] = {((1 << (kBits - 1)) - zeros[0]) * chunk.scale_of(q, 0),
                            ((1 << (kBits - 1)) - zeros[8]) * chunk.scale_of(q, 1)};
#pragma unroll
      for (int r = 0; r < kRT; ++r) {
        const uint8_t* from =
            x_sums() + (kb + q * C::kScaled) * sums_step() + min(32 * r + lane % 4 * 8, sums_step() - 8);
        float2 sum = {0, 0};
        for (int i = 0; i < C::kScaled; ++i) {
          const float2 v = *reinterpret_cast<const float2*>(from + i * sums_step());
          sum.x += v.x, sum.y += v.y;
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) total[r][c] = fmaf(off[c / 2], c % 2 == 0 ? sum.x : sum.y, total[r][c]);
      }
    }
  }

  // Leaves a column block's sums of this warp, or adds them to those of the segments before.
  __device__ void leave(int column, bool first, float (&total)[kRT][4]) const {
    float* to = warp_sums(column, warp);
#pragma unroll
    for (int r = 0; r < kRT; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int row = 8 * r + lane % 4 * 2 + c % 2;
        float& there = to[row * kTileColumns + lane / 4 + c / 2 * 8];
        if (row < a.M) there = first ? total[r][c] : there + total[r][c];
        total[r][c] = 0;
      }
  }

  // The warp's share of a segment: tiles [lo, hi), within the block's k.
  struct Share {
    int lo, hi;
  };
  __device__ Share share_of(const Segment& s) const {
    const int begin = max(k_first, s.first) - s.first, end = min(k_last, s.first + s.count) - s.first;
    if (begin >= end) return {0, 0};
    const int from = begin / 4 * 4, quads = (end - from + 3) / 4;  // runs of four from the segment's start on
    return {max(begin, from + quads * warp / kFewWarps * 4), min(end, from + quads * (warp + 1) / kFewWarps * 4)};
  }

  // Goes through the chunks of column blocks [first, last), one fetched ahead. `early`: what to do between the first
  // fetch and the first product.
  template <int kBits, bool kFine, typename Early>
  __device__ __forceinline__ void segment(const Segment& s, int first, int last, bool first_segment,
                                          Early early) const {
    using C = Chunk<kBits, kFine>;
    const Share share = share_of(s);
    C one, two;
    int next_column = first, next = share.lo;
    const auto fetch = [&](C& to) {
      if (next_column >= last || share.lo >= share.hi) return;
      to.fetch(m, s, next_column, next, share.hi, lane);
      next += C::kTiles;
      if (next >= share.hi) next = share.lo, ++next_column;
    };
    fetch(one);
    early();
    float total[kRT][4] = {};
    int column = first, at = share.lo;
    const auto use = [&](C& chunk) {
      if (share.lo < share.hi) {
        multiply(chunk, s.first + at - k_first, total);
        if (m.zeros != nullptr) move_zeros(chunk, s, column, at, s.first + at - k_first, total);
      }
      at += C::kTiles;
      if (at < share.hi) return;
      leave(column - first, first_segment, total);
      at = share.lo;
      ++column;
    };
#pragma unroll 1
    while (column < last) {
      fetch(two);
      use(one);
      if (column >= last) break;
      fetch(one);
      use(two);
    }
  }

  template <typename Early>
  __device__ __forceinline__ void any_segment(const Segment& s, int first, int last, bool first_segment,
                                              Early early) const {
    switch (s.bits) {
      case 2:
        return segment<2, true>(s, first, last, first_segment, early);
      case 3:
        return segment<3, true>(s, first, last, first_segment, early);
      case 4:
        return segment<4, true>(s, first, last, first_segment, early);
      case 5:
        return segment<5, true>(s, first, last, first_segment, early);
      case 6:
        return segment<6, true>(s, first, last, first_segment, early);
      case 8:
        return segment<8, true>(s, first, last, first_segment, early);
    }
  }

  // ---- the sums of a batch

  __device__ void write(float sum, int row, int64_t n) const {
    if (n >= m.N) return;
    if (a.bias != nullptr) sum += to_float(static_cast<const T*>(a.bias)[n]);
    if (a.add != nullptr) sum += to_float(static_cast<const T*>(a.add)[row * a.add_stride + n]);
    static_cast<T*>(a.y)[static_cast<int64_t>(row) * m.N + n] = from_float<T>(sum);
  }

  __device__ void add_up(int first, int last) const {
    __syncthreads();
    const int each = a.M * kTileColumns, all = (last - first) * each;
#pragma unroll 1
    for (int i = threadIdx.x; i < all; i += kFewThreads) {
      const int column = i / each, at = i % each;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kFewWarps; ++w) sum += warp_sums(column, w)[at];
      if (a.splits > 1)
        block_sums()[i] = sum;
      else
        write(sum, at / kTileColumns, (first + column) * static_cast<int64_t>(kTileColumns) + at % kTileColumns);
    }
    if (a.splits > 1) {
      cluster_sync();
#pragma unroll 1
      for (int i = rank * kFewThreads + threadIdx.x; i < all; i += a.splits * kFewThreads) {
        float sum = 0;
        for (int s = 0; s < a.splits; ++s) sum += *in_block(block_sums() + i, s);
        const int column = i / each, at = i % each;
        write(sum, at / kTileColumns, (first + column) * static_cast<int64_t>(kTileColumns) + at % kTileColumns);
      }
      cluster_sync();  // nobody's sums change, and nobody leaves, while they are read
    } else {
      __syncthreads();
    }
  }
};

// kBits: one segment of that width, whose k blocks and groups are multiples of 4. 0: any segments.
template <typename T, int kBits, int kRT>
__global__ void __launch_bounds__(kFewThreads, 1) few_kernel(const __grid_constant__ FewArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  FewBlock<T, kRT> block(a, shared);
  bool staged = false;
  const auto stage = [&] {
    if (staged) return;
    staged = true;
    wait_for_previous();
    let_next_begin();
    block.stage_x();
  };
#pragma unroll 1
  for (int first = block.column_first; first < block.column_last; first += a.batch) {
    const int last = min(first + a.batch, block.column_last);
    if constexpr (kBits != 0) {
      block.template segment<kBits, false>(a.m.segment[0], first, last, true, stage);
    } else {
      stage();
#pragma unroll 1
      for (int i = 0; i < a.m.segments; ++i) block.any_segment(a.m.segment[i], first, last, i == 0, [] {});
    }
    block.add_up(first, last);
  }
}

// The kernel for a width (0: any); each pair of dtype and row tiles (1, 2 or 4) is a unit of its own, few_*.cu.
using FewKernel = void (*)(FewArgs);
template <typename T, int kRT>
FewKernel few_kernel_of(int bits);

template <typename T, int kRT>
FewKernel few_kernel_of_width(int bits) {
  switch (bits) {
    case 2:
      return few_kernel<T, 2, kRT>;
    case 3:
      return few_kernel<T, 3, kRT>;
    case 4:
      return few_kernel<T, 4, kRT>;
    case 5:
      return few_kernel<T, 5, kRT>;
    case 6:
      return few_kernel<T, 6, kRT>;
    case 8:
      return few_kernel<T, 8, kRT>;
  }
  return few_kernel<T, 0, kRT>;
}

}  // namespace nybble::cuda
