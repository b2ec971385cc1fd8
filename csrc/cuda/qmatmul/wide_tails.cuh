// The tiles of the last turn where they are fewer than the blocks, but not many fewer: each has a block of its own, and
// the blocks that have none, the helpers, do the tails, the last stages of them. A helper leaves its sums of a tail in
// scratch and sets flags; the tile's own block adds them to what it has. It has them brought to its ring of stages as
// if they were stages of the tile, so that it hardly waits: helpers are done earlier.
#pragma once
#include "cuda/common/flag.cuh"
#include "cuda/qmatmul/wide.cuh"
#include "cuda/qmatmul/wide_sm90_tiles.cuh"

namespace nybble::cuda::wide {

// Of the tails' pieces: flags, one for each block, and sums, [columns of 64][8 rows][128 threads]. Without own tiles
// pieces only.
struct Scratch {
  Flag* flags;
  float4* pieces;
  Flag mark;
};

// Whether tiles may have tails: of fewer rows a stage is soon done, and a piece takes too long.
template <typename Tile>
constexpr bool kHelps = !Tile::kByWarps && Tile::kRows >= 128;

template <typename Tile>
struct Piece {
  static constexpr int kFours = Tile::kM * Tile::kRows / 8, kPart = kFours * 128;  // of a thread, of a warpgroup
  // As much as x goes into a stage, and so many stages are a piece.
  static constexpr int kBytes = kFours * Tile::kGroups * 128 * 16,
                       kChunks = (kBytes + Tile::kXBytes - 1) / Tile::kXBytes;
  static_assert(kFours % kChunks == 0);
  static constexpr int kChunk = kFours / kChunks;
};

// The pieces of a tile's tail. 32 bits are enough: a tile has at most 2^15 stages, a GPU fewer than 2^8
// multiprocessors.
struct Tail {
  int first, count;  // helpers
};
__device__ inline Tail tail_of(const Plan& plan, int r) {
  const uint32_t helpers = plan.helpers(), tail = plan.tail(), all = plan.rest * tail;
  const uint32_t first = ((r * tail + 1) * helpers - 1) / all, last = ((r + 1) * tail * helpers - 1) / all;
  return {static_cast<int>(first), static_cast<int>(last - first + 1)};
}

// Whether this is the work of a tile's own block that has a tail.
__device__ inline bool has_tail(const Plan& plan, const Work& work) {
  return plan.own > 0 && work.slot < 0 && work.end < plan.stages;
}

// A thread of a helper that does nothing else: it sets the flags of its pieces once all warps have counted theirs. To
// wait until they are in memory takes a microsecond or more.
template <typename Tile>
__device__ void tell_tails(const Plan& plan, const Scratch& scratch, int cta, int rank, const unsigned* left) {
  Works works(plan, cta);
  unsigned warps = 0;
  for (Work work; works.next(&work);) {
    if (work.slot < 0) continue;
    wait_for_count(left, warps += Tile::kWarps);
    set_flag(scratch.flags + static_cast<int64_t>(work.slot) * Tile::kCluster + rank, scratch.mark);
  }
}

// The thread that copies x: the pieces to the stages after the last of the tile.
template <typename Tile>
__device__ void copy_tail(const Plan& plan, int r, const Scratch& scratch, const Shape& shape, uint8_t* memory,
                          Barrier* full, Barrier* empty, Ring& ring, int& filled, int rank) {
  using P = Piece<Tile>;
  constexpr int kBytes = P::kChunk * 128 * 16;
  const Tail tail = tail_of(plan, r);
  for (int i = 0; i < tail.count; ++i) {
    const int64_t at = static_cast<int64_t>(tail.first + i + r) * Tile::kCluster + rank;
    wait_for_flag(scratch.flags + at, scratch.mark);
    fence_copy_engine();
    const float4* piece = scratch.pieces + at * Tile::kGroups * P::kPart;
#pragma unroll 1
    for (int c = 0; c < P::kChunks; ++c, ++filled) {
      if (filled >= shape.stages) empty[ring.stage].wait(ring.phase ^ 1);
      full[ring.stage].arrive();  // in place of the thread that copies weights
      full[ring.stage].arrive_expecting(Tile::kGroups * kBytes);
      for (int g = 0; g < Tile::kGroups; ++g)
        copy_bytes(memory + ring.stage * shape.stage_bytes + g * kBytes, piece + g * P::kPart + c * P::kChunk * 128,
                   kBytes, full + ring.stage);
      ring.next(shape.stages);
    }
  }
}

// sums += the pieces, in the order of k.
template <typename Tile>
__device__ void add_tail(const Plan& plan, int r, const Shape& shape, const uint8_t* memory, Barrier* full,
                         Barrier* empty, Ring& ring, float (&sums)[Tile::kM][Tile::kRows / 2]) {
  using P = Piece<Tile>;
  const uint8_t* own = memory + threadIdx.x / 128 * (P::kChunk * 128 * 16) + threadIdx.x % 128 * 16;
  const int count = tail_of(plan, r).count;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int c = 0; c < P::kChunks; ++c) {
      full[ring.stage].wait(ring.phase);
      const float4* from = reinterpret_cast<const float4*>(own + ring.stage * shape.stage_bytes);
#pragma unroll
      for (int j = 0; j < P::kChunk; ++j) {
        const float4 q = from[j * 128];
        const int at = c * P::kChunk + j;
        float* v = &sums[at / (Tile::kRows / 8)][at % (Tile::kRows / 8) * 4];
        v[0] += q.x, v[1] += q.y, v[2] += q.z, v[3] += q.w;
      }
      __syncwarp();
      release<Tile::kCluster>(empty + ring.stage);
      ring.next(shape.stages);
    }
  }
}

}  // namespace nybble::cuda::wide
