// y = f(x) @ W + bias + add for few rows of x: as fast as the weights can be read. What the kernels have in common: how
// the work is shared out, x and the end. What they are launched with is chosen in few.cu.
//
// A block, or a cluster of `splits` blocks that share out k, has some column blocks for itself. Its warps each take a
// stretch of them, as they lie in memory; where the matrix has several parts, one part of k after the other:
//
//      |---- column block 0 ----|---- column block 1 ----|---- column block 2 ----|   k of the part, front to back
//      |    warp 0   |    warp 1   |    warp 2   | ...
//
//   few_registers.cuh   one width, a group to four tiles or more: a warp reads tiles straight into registers
//   few_ring.cuh        anything else: into a ring of its own in shared memory
//   few_digits.cuh      in both, one or two rows times 2 or 3 bits, a group to four tiles or more: in whole numbers
//
// No barrier stands between the memory and the tensor cores. What a warp sums up of a column block it leaves in shared
// memory; at the end the shares of each column block are added up in order, and those of the cluster's blocks. Weights
// are fetched before the kernel before this one is over; x is waited for. A row's sums depend on K, N and the plan
// alone, not on the other rows.
#pragma once
#include "cuda/common/cluster.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/qmatmul/few_digits.cuh"
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
  // Of each of the splits: its first part, and the quads that a column block has there.
  int16_t part_of[kFewSplits + 1], quads_of[kFewSplits];
  int32_t slot_bytes;           // of a warp's ring
  int32_t scales_at, zeros_at;  // bytes into a slot
  // Bytes into shared memory. sums_at, digits_at: of x; 0: not wanted
  int32_t sums_at, digits_at, scratch_at, block_sums_at, ring_at, list_at, shares_at;
};

constexpr int kFewWarps = 16, kFewThreads = 32 * kFewWarps;

// What a quad takes of a block's time, about.
constexpr int few_cost(int bits) { return bits + 2; }

// A warp leaves its share of a part's column block in slot (column block + warp), a part's slots after those of the
// part before: as stretches follow each other, no two meet there.
__host__ __device__ constexpr int few_slots(int parts, int columns) { return parts * (columns + kFewWarps); }
constexpr int kFewShareRow = kTileColumns + 4;  // and four that keep rows out of each other's banks

using FewKernel = void (*)(FewArgs);

template <typename T>
struct FewBlock {
  const FewArgs& a;
  const FewMatrix& m;
  uint8_t* shared;
  int lane, warp, rank, rows;
  int column_first, columns;  // column blocks of the cluster
  int first_part, parts;      // of the block
  int quads;                  // that a column block has there

  __device__ FewBlock(const FewArgs& args, uint8_t* memory)
      : a(args), m(args.m), shared(memory), lane(threadIdx.x % 32), rows(args.x.M) {
    warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the same in all lanes, and the compiler knows
    rank = a.splits > 1 ? cluster_rank() : 0;
    const int cluster = a.splits > 1 ? blockIdx.x / a.splits : blockIdx.x;
    column_first = cluster * a.columns + min(cluster, a.columns_more);
    columns = a.columns + (cluster < a.columns_more ? 1 : 0);
    first_part = a.part_of[rank];
    parts = a.part_of[rank + 1] - first_part;
    quads = a.quads_of[rank];
  }

  __device__ const FewPart& part(int i) const { return m.part[first_part + i]; }

  // Shared memory: x, its sums, what its norm needs, the block's sums, the rings, the shares, the first of each pair's.
  __device__ uint8_t* sums() const { return shared + a.sums_at; }
  // [slot][row][column]
  __device__ float* share(int slot) const {
    return reinterpret_cast<float*>(shared + a.shares_at) + slot * rows * kFewShareRow;
  }
  // The first slot of a pair. A part has one more than column blocks: where its last would follow.
  __device__ int* first_slots() const { return reinterpret_cast<int*>(share(few_slots(parts, columns))); }
  // [row][column], at the same place in all blocks of a cluster
  __device__ float* block_sums() const { return reinterpret_cast<float*>(shared + a.block_sums_at); }

  __device__ FewRows<T, kFewThreads> staged() const {
    auto* scratch = reinterpret_cast<float*>(shared + a.scratch_at);
    return {a.x, m, shared, scratch, first_part, parts, quads};
  }

  // After the first weights were asked for: asks for x.
  __device__ void ask_for_x() const {
    auto* shares = reinterpret_cast<float4*>(share(0));
    for (int i = threadIdx.x; i < few_slots(parts, columns) * rows * (kFewShareRow / 4); i += kFewThreads)
      shares[i] = {0, 0, 0, 0};
    if (threadIdx.x < parts) {
      const int part = threadIdx.x;
      first_slots()[part * (columns + 1) + columns] = (part + 1) * (columns + kFewWarps);
    }
    wait_for_previous();
    let_next_begin();
    staged().fetch();
  }
  // Before the first product; so many groups of copies were begun after x. kSums, kDigits: may be wanted.
  template <int kAfter, bool kSums, bool kDigits>
  __device__ void take_x() const {
    wait_for_copies<kAfter>();
    if ((a.sums_at | a.digits_at) != 0) __syncthreads();
    if (kSums && a.sums_at != 0) staged().sum_up(sums());
    if (kDigits && a.digits_at != 0)
      few_write_digits<T>(shared, shared + a.digits_at, rows, quads, warp, kFewWarps, lane);
    __syncthreads();
  }

  // Of quad `quad` of a column block.
  __device__ FewOperand operand(int quad) const {
    const int step = few_sums_step(rows);
    return {few_operand(shared_address(shared), rows, quads, lane) + quad * 256,
            sums() + min(lane % 4 * 8, step / kFewSums - 8) + quad * step, step};
  }

  __device__ FewDigits digits(int quad) const {
    return {shared_address(shared + a.digits_at), rows, quads, quad, lane};
  }

  // Where stretch `stretch` of a part leaves its share of a column block.
  __device__ int slot_of(int part, int column, int stretch) const {
    return part * (columns + kFewWarps) + column + stretch;
  }

  // By one lane of the warp whose stretch is the first that has a share of it.
  __device__ void begins(int part, int column, int slot) const { first_slots()[part * (columns + 1) + column] = slot; }

  // Puts the warp's sums where its share lies.
  __device__ __forceinline__ void leave(int slot, float (&total)[4]) const {
    float* to = share(slot) + lane / 4;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int row = lane % 4 * 2 + c % 2;
      if (row < rows) to[row * kFewShareRow + c / 2 * 8] = total[c];
      total[c] = 0;
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
    const auto sum_at = [&](int row, int column, int n) -> float& {
      return block_sums()[(row * columns + column) * kTileColumns + n];
    };
    __syncthreads();
    each_number(threadIdx.x, kFewThreads, [&](int row, int column, int n) {
      float sum = 0;
      for (int part = 0; part < parts; ++part) {
        const int* first = first_slots() + part * (columns + 1) + column;
#pragma unroll 4
        for (int slot = first[0]; slot < first[1]; ++slot) sum += share(slot)[row * kFewShareRow + n];
      }
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

}  // namespace nybble::cuda
