// y = f(x) @ W + bias + add for few rows of x: as fast as the weights can be read. The kernel; what it is launched with
// is chosen in few.cu.
//
// A block, or a cluster of `splits` blocks that share out k, has some column blocks for itself. Its warps each take a
// stretch of them, as they lie in memory:
//
//      |---- column block 0 ----|---- column block 1 ----|---- column block 2 ----|   k of the block, front to back
//      |    warp 0   |    warp 1   |    warp 2   | ...
//
// A warp reads tiles from global memory straight into registers, some quads (few_tiles.cuh) ahead of the one it
// multiplies: no barrier and no copy stands between the memory and the tensor cores. What it sums up of a column block
// it leaves in shared memory; at the end the shares of each column block are added up in order, and those of the
// cluster's blocks. Weights are fetched before the kernel before this one is over; x is waited for. A row's sums depend
// on K, N and the plan alone, not on the other rows.
#pragma once
#include "cuda/common/cluster.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/qmatmul/few_tiles.cuh"

namespace nybble::cuda {

constexpr int kFewRows = 8;  // of one operand B

struct FewArgs {
  FewMatrix m;
  FewX x;  // up to kFewRows rows
  const void *bias, *add;
  int64_t add_stride;
  void* y;          // [M, N]
  int32_t splits;   // blocks of a cluster
  int32_t columns;  // column blocks of a cluster, and how many clusters have one more
  int32_t columns_more;
  uint32_t inverse[2];  // of `columns` and one more: their multiples' number within i is i * inverse / 2^32
  int32_t units;        // runs of 4 k blocks of a block, and how many of the splits have one more
  int32_t units_more;
  int32_t sums_at, scratch_at, shares_at;  // bytes into shared memory
};

// As many warps as there are registers for, and how many quads of tiles each has on their way.
constexpr int kFewWarps = 16, kFewThreads = 32 * kFewWarps;
template <int kBits>
constexpr int kFewAhead = kBits == 2   ? 8
                          : kBits == 3 ? 5
                          : kBits <= 6 ? 4
                                       : 3;
// Of them, before x is asked for: more, and x waits in the queue behind them.
constexpr int kFewEarly = 2;

// Column blocks that a warp has a share of, at most, where the block has `columns` or one more.
__host__ __device__ inline int few_shares(int columns) { return columns / kFewWarps + 2; }

constexpr int kFewShareRow = kTileColumns + 4;

template <typename T>
struct FewBlock {
  const FewArgs& a;
  const FewMatrix& m;
  uint8_t* shared;
  int lane, warp, rank, rows;
  int column_first, columns;  // column blocks of the cluster
  int k_first, k_last;        // k blocks of the block

  __device__ FewBlock(const FewArgs& args, uint8_t* memory)
      : a(args), m(args.m), shared(memory), lane(threadIdx.x % 32), rows(args.x.M) {
    warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the same in all lanes, and the compiler knows
    rank = a.splits > 1 ? cluster_rank() : 0;
    const int cluster = a.splits > 1 ? blockIdx.x / a.splits : blockIdx.x;
    column_first = cluster * a.columns + min(cluster, a.columns_more);
    columns = a.columns + (cluster < a.columns_more ? 1 : 0);
    k_first = 4 * (rank * a.units + min(rank, a.units_more));
    k_last = min(m.KB, k_first + 4 * (a.units + (rank < a.units_more ? 1 : 0)));
  }

  // Shared memory: x, its sums, what its norm needs, the warps' shares, the block's sums.
  __device__ int blocks() const { return k_last - k_first; }
  __device__ uint8_t* sums() const { return shared + a.sums_at; }
  // [share][row][16 columns and 4 that keep the rows out of each other's banks]
  __device__ float* shares(int w) const {
    return reinterpret_cast<float*>(shared + a.shares_at) + w * few_shares(a.columns) * share_floats();
  }
  __device__ int share_floats() const { return rows * kFewShareRow; }
  __device__ float* block_sums() const { return shares(kFewWarps); }  // [row][column]

  // The first column block that a warp has a share of.
  __device__ int first_share(int w) const { return static_cast<unsigned>(columns * w) / kFewWarps; }

  __device__ FewRows<T, kFewThreads> staged() const {
    auto* scratch = reinterpret_cast<float*>(shared + a.scratch_at);
    return {a.x, m, shared, m.zeros == nullptr ? nullptr : sums(), scratch, k_first, blocks()};
  }

  // After the first weights were asked for: asks for x.
  __device__ void ask_for_x() const {
    for (int i = lane; i < few_shares(a.columns) * share_floats(); i += 32) shares(warp)[i] = 0;
    wait_for_previous();
    let_next_begin();
    staged().fetch();
  }
  // Before the first product.
  __device__ void take_x() const {
    staged().finish();
    __syncthreads();
  }

  __device__ FewOperand operand() const {
    const int row = min(lane % 8, rows - 1);  // what is not there is the last row again
    const int step = few_sums_step(rows);
    return {shared_address(shared + row * few_row_bytes(blocks()) + lane / 8 * 16),
            sums() + min(lane % 4 * 8, step - 8), step};
  }
  // kb: a multiple of 4.
  __device__ static FewOperand moved(const FewOperand& x, int kb) {
    return {x.x + kb * 64, x.sums + kb / 4 * x.sums_step, x.sums_step};
  }

  // Adds the sums of a column block to the warp's share of it.
  __device__ __forceinline__ void leave(int column, float (&total)[4]) const {
    float* to = shares(warp) + (column - first_share(warp)) * share_floats() + lane / 4;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int row = lane % 4 * 2 + c % 2;
      if (row < rows) to[row * kFewShareRow + c / 2 * 8] += total[c];
      total[c] = 0;
    }
  }

  // The warp's stretch.
  template <int kBits>
  __device__ __forceinline__ void multiply() const {
    using Q = Quad<kBits>;
    constexpr int kAhead = kFewAhead<kBits>;
    const unsigned quads = (k_last - k_first) / 4;
    const auto stretch = [&](int w) { return static_cast<int>(columns * quads * w / kFewWarps); };
    int left = stretch(warp + 1) - stretch(warp), column = first_share(warp);
    int at = k_first + 4 * (stretch(warp) - column * quads);  // k block

    // The next quad, its group's scales and zeros, and how many quads are left of the group.
    const int64_t nb = column_first + column;
    const uint8_t* from = m.weight + nb * m.column_bytes + 64ll * at * kBits;
    const int64_t to_next = m.column_bytes - static_cast<int64_t>(quads) * Q::kBytes;
    int group = m.group_of(at), of_group = ((group + 1) * m.per - at) / 4;
    const uint16_t* scales = m.scales + (nb * m.G + group) * kTileColumns + lane % 16;
    const float* zeros = m.zeros == nullptr ? nullptr : m.zeros + (nb * m.G + group) * kTileColumns + lane % 16;
    const auto move_on = [&](int groups) {
      group += groups;
      scales += groups * kTileColumns;
      if (zeros != nullptr) zeros += groups * kTileColumns;
    };
    int next = at, to_fetch = left;
    const auto fetch = [&](Q& quad) {
      if (to_fetch <= 0) return;
      --to_fetch;
      quad.fetch(from, scales, zeros, lane);
      from += Q::kBytes;
      next += 4;
      if (--of_group == 0) {
        move_on(1);
        of_group = m.per / 4;
      }
      if (next < k_last) return;
      const int first = m.group_of(k_first);
      next = k_first;
      from += to_next;
      move_on(m.G + first - group);
      group = first;
      of_group = ((first + 1) * m.per - k_first) / 4;
    };
    Q ring[kAhead];
#pragma unroll
    for (int i = 0; i < kFewEarly; ++i) fetch(ring[i]);
    ask_for_x();
#pragma unroll
    for (int i = kFewEarly; i < kAhead; ++i) fetch(ring[i]);
    take_x();

    const FewOperand x_start = operand();
    FewOperand x = moved(x_start, at - k_first);
    float total[4] = {};
#pragma unroll 1
    while (left > 0) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        ring[i].template multiply<T>(x, lane, total);
        if (m.zeros != nullptr) ring[i].move_zeros(x, lane, total);
        fetch(ring[i]);
        x = moved(x, 4);
        at += 4;
        --left;
        if (at >= k_last || left == 0) {
          leave(column, total);
          if (left == 0) break;
          ++column;
          at = k_first;
          x = x_start;
        }
      }
    }
  }

  // ---- the end

  // Calls body(row, column block, column of it) for each number of y, 16 columns of a row by neighbouring threads.
  template <typename Body>
  __device__ void each_number(int thread, int threads, Body body) const {
    const int wide = rows <= 1 ? 0 : 32 - __clz(rows - 1);  // rows to a power of two: no division
#pragma unroll 1
    for (int i = thread; i < columns << (4 + wide); i += threads) {
      const int row = i / kTileColumns & ((1 << wide) - 1);
      if (row < rows) body(row, i >> (4 + wide), i % kTileColumns);
    }
  }

  __device__ void write(float sum, int row, int column, int n) const {
    const int64_t at = (static_cast<int64_t>(column_first) + column) * kTileColumns + n;
    if (at >= m.N) return;
    if (a.bias != nullptr) sum += to_float(static_cast<const T*>(a.bias)[at]);
    if (a.add != nullptr) sum += to_float(static_cast<const T*>(a.add)[row * a.add_stride + at]);
    static_cast<T*>(a.y)[static_cast<int64_t>(row) * m.N + at] = from_float<T>(sum);
  }

  __device__ void add_up() const {
    const unsigned inverse = a.inverse[columns - a.columns];
    const auto divided = [&](int i) { return columns == 1 ? i : static_cast<int>(__umulhi(i, inverse)); };
    const int stride = few_shares(a.columns) * share_floats();
    const auto sum_at = [&](int row, int column, int n) -> float& {
      return block_sums()[(row * columns + column) * kTileColumns + n];
    };
    __syncthreads();
    each_number(threadIdx.x, kFewThreads, [&](int row, int column, int n) {
      // The warps whose stretch, columns * w / 16 to columns * (w + 1) / 16, meets the column block.
      const int last = divided((column + 1) * kFewWarps + columns - 1);
      const float* from = shares(0) + row * kFewShareRow + n;
      float sum = 0;
#pragma unroll 4
      for (int w = divided(column * kFewWarps); w < last; ++w)
        sum += from[w * stride + (column - first_share(w)) * share_floats()];
      if (a.splits > 1)
        sum_at(row, column, n) = sum;
      else
        write(sum, row, column, n);
    });
    if (a.splits == 1) return;
    cluster_sync();
    each_number(rank * kFewThreads + threadIdx.x, a.splits * kFewThreads, [&](int row, int column, int n) {
      float sum = 0;
      for (int split = 0; split < a.splits; ++split) sum += *in_block(&sum_at(row, column, n), split);
      write(sum, row, column, n);
    });
    cluster_leave();
  }
};

template <typename T, int kBits>
__global__ void __launch_bounds__(kFewThreads, 1) few_kernel(const __grid_constant__ FewArgs a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  const FewBlock<T> block(a, shared);
  block.template multiply<kBits>();
  block.add_up();
#endif
}

// The kernel for a width; each dtype is a unit of its own, few_*.cu.
using FewKernel = void (*)(FewArgs);
template <typename T>
FewKernel few_kernel_of(int bits);

}  // namespace nybble::cuda
