// y = x @ W + bias + add for many rows on Hopper: W is decoded straight into the operand registers of wgmma, so y^T =
// W^T x^T is what is computed, W rounded to x's type, sums in float32.
//
//   a block of threads, one to a multiprocessor, works at one tile after another:
//
//        kColumns of W             stages of 64 to 256 k in shared memory, as many as fit:
//      +--------------------+        x        [kRows][64 k], swizzled    (B)
//      | warpgroup 0: 64    |        weights  [column block][k block] tiles as they are in memory
//   k  | warpgroup 1: 64    |        scales, zeros  [column block][group][16]
//      | ...                |      one thread has the copy engine bring weights, one x; the warpgroups decode their
//      +--------------------+      columns' tiles (A: 16 columns a warp) and multiply by all kRows rows of x
//
// Of many rows a cluster of two blocks brings each row of x once, to the shared memory of both.
//
// A warpgroup decodes while the tensor cores are at what it, or another, decoded before. Few rows are multiplied by
// warps, each for itself, see WarpTile. Tiles are shared out, and the last of them cut, as wide.cuh says; those of a
// small matrix are each the work of a cluster of blocks, which add up their sums in their shared memory.
#pragma once
#include <cuda.h>

#include "cuda/common/hopper.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/qmatmul/wide.cuh"
#include "cuda/qmatmul/wide_sm90_multiply.cuh"
#include "cuda/qmatmul/wide_tails.cuh"

namespace nybble::cuda::wide {

// How the copy engine finds its boxes. A box of weights, scales or zeros is a stage's, of all columns of the tile.
struct Maps {
  CUtensorMap x;          // [M, K], boxes of a block's share of kRows x 64
  CUtensorMap weight[6];  // [NB, bytes] for each width
  CUtensorMap scale;      // [NB, 16 G]
  CUtensorMap zero;
};

__host__ __device__ constexpr int width_index(int bits) { return bits == 8 ? 5 : bits - 2; }

// The sums of all blocks of a cluster, in the order of their ranks, to y: of a thread's fours, each block adds up every
// `split`th. They go to the memory of the stages, when all are through with them.
template <typename T, int kM, int kRows, int kThreads>
__device__ void add_up_cluster(const Output<T>& o, int64_t row, int64_t n, int split, uint8_t* memory,
                               const float (&sums)[kM][kRows / 2]) {
  constexpr int kFours = kM * kRows / 8;
  auto* own = reinterpret_cast<float4*>(memory) + threadIdx.x;
  const int rank = cluster_rank();
  meet_cluster();
  int turn = 0, owner = 0;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const float* v = &sums[i / (kRows / 8)][i % (kRows / 8) * 4];
    *in_block(own + (turn + rank) * kThreads, owner) = make_float4(v[0], v[1], v[2], v[3]);
    if (++owner == split) owner = 0, turn += split;
  }
  meet_cluster();
  for (int i = rank; i < kFours; i += split) {
    float v[4] = {};
#pragma unroll 4
    for (int r = 0; r < split; ++r) {
      const float4 p = own[(i - rank + r) * kThreads];
      v[0] += p.x, v[1] += p.y, v[2] += p.z, v[3] += p.w;
    }
    finish_block(o, row + i % (kRows / 8) * 8, n + i / (kRows / 8) * 64, v);
  }
}

// Calls copy(work, segment, stage of the segment, its place in memory, its barrier) for every stage of the block's
// work, as the stages of the ring become free; and after each work end(work, ring, stages filled).
template <typename Tile, typename Copy, typename End>
__device__ void fill_ring(const Matrix& m, const Shape& shape, const Plan& plan, uint8_t* memory, Barrier* full,
                          Barrier* empty, Copy copy, End end) {
  Ring ring;
  int filled = 0;
  Works works(plan, blockIdx.x / Tile::kCluster);
  for (Work work; works.next(&work);) {
    int passed = 0;
    for (int si = 0; si < m.segments; ++si) {
      const Segment& s = m.segment[si];
      const int stages = (s.count + Tile::kBlocks - 1) / Tile::kBlocks, past = min(stages, work.end - passed);
#pragma unroll 1
      for (int i = max(0, work.begin - passed); i < past; ++i, ++filled) {
        if (filled >= shape.stages) empty[ring.stage].wait(ring.phase ^ 1);
        copy(work, s, i, memory + ring.stage * shape.stage_bytes, full + ring.stage);
        ring.next(shape.stages);
      }
      passed += stages;
    }
    end(work, ring, filled);
  }
}

template <typename Tile>
__device__ void copy_weights(const Matrix& m, const Maps& maps, const Shape& shape, const Plan& plan, uint8_t* memory,
                             Barrier* full, Barrier* empty, int rank) {
  constexpr int kBlocks = Tile::kBlocks, kColumnBlocks = Tile::kColumnBlocks;
  fill_ring<Tile>(
      m, shape, plan, memory, full, empty,
      [&](const Work& work, const Segment& s, int i, uint8_t* stage, Barrier* barrier) {
        const auto [row_tile, column_tile] = place_of(work.tile, plan.row_tiles, plan.column_tiles);
        const int block = (column_tile * Tile::kCluster + rank) * kColumnBlocks;
        const int group = (s.group + s.group_of(i * kBlocks)) * kTileColumns;
        barrier->arrive_expecting(kColumnBlocks *
                                  (kBlocks * 64 * s.bits + shape.span * (m.zeros != nullptr ? 96 : 32)));
        copy_box(stage + shape.weight_at, &maps.weight[width_index(s.bits)], (s.offset + i * kBlocks * s.bits) * 8,
                 block, barrier);
        copy_box(stage + shape.scale_at, &maps.scale, group, block, barrier);
        if (m.zeros != nullptr) copy_box(stage + shape.zero_at, &maps.zero, group, block, barrier);
      },
      [](const Work&, Ring&, int&) {});
}

template <typename Tile>
__device__ void copy_x(const Matrix& m, const Maps& maps, const Shape& shape, const Plan& plan, const Scratch& scratch,
                       uint8_t* memory, Barrier* full, Barrier* empty, int rank) {
  constexpr int kShare = Tile::kRows / Tile::kCluster;  // rows that this block brings
  fill_ring<Tile>(
      m, shape, plan, memory, full, empty,
      [&](const Work& work, const Segment& s, int i, uint8_t* stage, Barrier* barrier) {
        const int row_tile = place_of(work.tile, plan.row_tiles, plan.column_tiles).row_tile;
        barrier->arrive_expecting(Tile::kXBytes);
#pragma unroll
        for (int b = 0; b < Tile::kBlocks / 2; ++b) {
          uint8_t* to = stage + (b * Tile::kRows + rank * kShare) * 128;
          const int k = (s.first + i * Tile::kBlocks + 2 * b) * kTileRows;
          const int row = row_tile * Tile::kRows + rank * kShare;
          if constexpr (Tile::kCluster == 1)
            copy_box(to, &maps.x, k, row, barrier);
          else
            copy_box_to((1 << Tile::kCluster) - 1, to, &maps.x, k, row, barrier);
        }
      },
      [&](const Work& work, Ring& ring, int& filled) {
        if constexpr (kHelps<Tile>)
          if (has_tail(plan, work))
            copy_tail<Tile>(plan, work.tile - plan.ctas * plan.whole, scratch, shape, memory, full, empty, ring, filled,
                            rank);
      });
}

template <typename Tile, bool kZeros>  // kZeros: of a plain tile; the others look at `m`
__global__ void __launch_bounds__(Tile::kThreads, 1)
    wide_kernel(const __grid_constant__ Matrix m,     //
                const __grid_constant__ Maps maps,    //
                const __grid_constant__ Shape shape,  //
                const Plan plan,                      //
                const Output<typename Tile::T> o,     //
                const Scratch scratch) {              // of tiles that are cut or have tails, see wide_tails.cuh
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kGroups = Tile::kGroups, kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks;
  constexpr int kColumns = Tile::kColumns;
  using T = typename Tile::T;
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ Barrier full[kMaxStages], empty[kMaxStages];
  [[maybe_unused]] __shared__ float4 exchange[Tile::kByWarps ? Tile::kWarps * kM * 32 : 1];
  [[maybe_unused]] __shared__ unsigned pieces_left;  // in scratch, by warps
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    pieces_left = 0;
    for (int i = 0; i < shape.stages; ++i) full[i].init(2), empty[i].init(Tile::kWarps * Tile::kCluster);
    fence_barrier_init();
  }
  int rank = 0;
  if constexpr (Tile::kCluster > 1) {
    rank = cluster_rank();
    meet_cluster();
  } else {
    __syncthreads();
  }

  if (warp >= Tile::kWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Tile::kCopierRegisters));
    if (warp > Tile::kWarps + 2 || lane != 0) return;
    if (warp == Tile::kWarps + 2) {
      if constexpr (kHelps<Tile>)
        if (plan.own > 0) tell_tails<Tile>(plan, scratch, blockIdx.x / Tile::kCluster, rank, &pieces_left);
    } else if (warp == Tile::kWarps) {
      copy_weights<Tile>(m, maps, shape, plan, memory, full, empty, rank);
    } else {
      prefetch_map(&maps.x);
      wait_for_previous();
      let_next_begin();
      copy_x<Tile>(m, maps, shape, plan, scratch, memory, full, empty, rank);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Tile::kRegisters));
    const int group = warp / 4 % kGroups;
    float sums[kM][kRows / 2];
    Works works(plan, blockIdx.x / Tile::kCluster);
    Work work;
    Ring ring;
    const auto first_column = [&](int column_tile) {
      const int64_t part = static_cast<int64_t>(column_tile) * Tile::kCluster + rank;
      return part * kColumns + (group * kM * 4 + warp % 4) * 16;
    };
    while (works.next(&work)) {
#pragma unroll
      for (int b = 0; b < kM; ++b)
#pragma unroll
        for (int j = 0; j < kRows / 2; ++j) sums[b][j] = 0.0f;
      int passed = 0;
      for (int si = 0; si < m.segments; ++si) {
        const Segment s = m.segment[si];
        const int stages = (s.count + kBlocks - 1) / kBlocks;
        const int from = max(0, work.begin - passed), to = min(stages, work.end - passed);
        passed += stages;
        if (from >= to) continue;
        int columns = 0;  // from the warp's first on
        if constexpr (Tile::kPlain && !Tile::kByWarps) {
          const int column_tile = place_of(work.tile, plan.row_tiles, plan.column_tiles).column_tile;
          columns = static_cast<int>(min(o.N - first_column(column_tile), int64_t{kColumns}));
        }
        const auto multiply = [&](auto zeros) {
          constexpr bool kTakenOff = decltype(zeros)::value;
          if constexpr (Tile::kByWarps)
            multiply_halves<Tile, kTakenOff>(s, from, to, shape, memory, full, empty, ring, sums);
          else if constexpr (Tile::kPlain)
            multiply_runs<Tile, kTakenOff>(s, from, to, columns, shape, memory, full, empty, ring, sums);
          else
            multiply_stages<Tile, kTakenOff>(s, from, to, shape, memory, full, empty, ring, sums);
        };
        if constexpr (Tile::kPlain)
          multiply(std::bool_constant<kZeros>{});
        else if (m.zeros != nullptr)
          multiply(std::true_type{});
        else
          multiply(std::false_type{});
      }
      if constexpr (kHelps<Tile>)
        if (has_tail(plan, work))
          add_tail<Tile>(plan, work.tile - plan.ctas * plan.whole, shape, memory, full, empty, ring, sums);
      wait_for_previous();  // y may still be read, and `add` written
      const auto [row_tile, column_tile] = place_of(work.tile, plan.row_tiles, plan.column_tiles);
      const int64_t row = static_cast<int64_t>(row_tile) * kRows;
      const int64_t n = first_column(column_tile);
      float4* piece =
          scratch.pieces +
          ((static_cast<int64_t>(work.slot) * Tile::kCluster + rank) * kGroups + group) * kM * (kRows / 8) * 128 +
          threadIdx.x % 128;
      if constexpr (Tile::kByWarps) {
        const int half = warp / 8;
        float joined[kM][kRows / 4];
        join_halves<Tile>(exchange, sums, joined);
        if (plan.split > 1)
          add_up_cluster<T, kM, kRows / 2, Tile::kWarps * 32>(o, row + half * kRows / 2, n, plan.split, memory, joined);
        else
          store_sums<T, kM, kRows / 2, kRows>(o, row + half * kRows / 2, n, work.slot < 0,
                                              piece + half * (kRows / 16) * 128, joined);
      } else if (plan.split > 1) {
        add_up_cluster<T, kM, kRows, Tile::kWarps * 32>(o, row, n, plan.split, memory, sums);
      } else {
        store_sums<T, kM, kRows>(o, row, n, work.slot < 0, piece, sums);
        if constexpr (kHelps<Tile>) {
          __syncwarp();
          if (lane == 0 && plan.own > 0 && work.slot >= 0) count_in_order(&pieces_left);
        }
      }
    }
    if constexpr (Tile::kCluster > 1) meet_cluster();  // nobody leaves whose barriers a peer may still arrive at
  }
#endif
}

}  // namespace nybble::cuda::wide
