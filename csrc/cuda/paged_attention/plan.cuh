// Who takes which tokens. The tokens a sequence's queries see are cut into tiles; the tiles of all sequences, one after
// the other, are cut into `ranges` of equal size, whatever the lengths. A worker is one warp: one range of one virtual
// head, which is a KV head with up to 8 of the query rows that share it. So 8 warps of a block read neighbouring heads
// of the same tokens at the same time.
//
//   sequence        0               1   2                   |  a worker gives one partial result (sum of weighted
//   tiles      [. . . . . . . .][. . .][. . . . . . .]      |  values, largest score, sum of weights) for each sequence
//   ranges     0 0 0 0 0 0 1 1   1 1 1  1 2 2 2 2 2 2       |  that it touches, in a slot of its own: range + sequence
//
// Batch invariant: a fixed number of ranges a sequence, so that the cuts follow from its length alone.
#pragma once
#include "cuda/common/launch.cuh"
#include "ops/paged_attention.h"

namespace nybble::cuda::paged {

constexpr int kRows = 8;       // query rows of a worker: the columns of an 8-column matrix product
constexpr int kSegments = 64;  // ranges of a sequence, batch invariant

struct Plan {
  int tile;            // tokens
  int ranges;          // in all
  int heads;           // virtual heads
  int blocks_of_head;  // virtual heads of a KV head
  int rows;            // query rows of a KV head: T * H / Hk
  int warps;           // of a thread block
  int64_t slots;       // partial results of one row
  bool invariant;
};

struct Tiles {
  int first, last;
};

__device__ inline int length_of(const PagedAttentionArgs& a, int64_t b) {
  const int64_t most = a.n * a.page, length = a.lengths[b];
  return static_cast<int>(length < 0 ? 0 : length > most ? most : length);
}

// The first token that any query of a sequence sees.
__device__ inline int first_seen(const PagedAttentionArgs& a, int length) {
  const int64_t first = a.window > 0 ? length - a.T - a.window + 1 : 0;
  return first > 0 ? static_cast<int>(first) : 0;
}

__device__ inline Tiles tiles_of(const PagedAttentionArgs& a, const Plan& plan, int length) {
  return {first_seen(a, length) / plan.tile, (length + plan.tile - 1) / plan.tile};
}

__device__ inline int count_of(const PagedAttentionArgs& a, const Plan& plan, int64_t b) {
  const Tiles tiles = tiles_of(a, plan, length_of(a, b));
  return tiles.last - tiles.first;
}

__device__ inline int cut(int total, int part, int parts) {
  return static_cast<int>(static_cast<int64_t>(total) * part / parts);
}

// Tiles of sequences 0 ... b - 1, and of all. The whole warp calls it.
struct Before {
  int before, all;
};
__device__ inline Before tiles_before(const PagedAttentionArgs& a, const Plan& plan, int64_t b) {
  int before = 0, all = 0;
  for (int64_t i = threadIdx.x % 32; i < a.B; i += 32) {
    const int count = count_of(a, plan, i);
    all += count;
    if (i < b) before += count;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    before += __shfl_xor_sync(0xffffffffu, before, offset);
    all += __shfl_xor_sync(0xffffffffu, all, offset);
  }
  return {before, all};
}

// Where a worker begins: tile `tile` after the first of sequence b, then `count` tiles over that and later sequences.
struct Work {
  int64_t b;
  int tile, count;
};
__device__ inline Work work_of(const PagedAttentionArgs& a, const Plan& plan, int range) {
  if (plan.invariant) {
    const int64_t b = range / kSegments;
    const int part = range % kSegments, all = count_of(a, plan, b), begin = cut(all, part, kSegments);
    return {b, begin, cut(all, part + 1, kSegments) - begin};
  }
  const int all = tiles_before(a, plan, 0).all, begin = cut(all, range, plan.ranges);
  const int count = cut(all, range + 1, plan.ranges) - begin, lane = threadIdx.x % 32;
  if (count == 0) return {0, 0, 0};
  int passed = 0;
  for (int64_t b = 0;; b += 32) {  // a sequence with tile `begin` exists, since begin < all
    const int mine = b + lane < a.B ? count_of(a, plan, b + lane) : 0;
    int upto = mine;  // and those before it in this group of 32
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, upto, offset);
      if (lane >= offset) upto += other;
    }
    const unsigned beyond = __ballot_sync(0xffffffffu, passed + upto > begin);
    if (beyond != 0) {
      const int at = __ffs(static_cast<int>(beyond)) - 1;
      return {b + at, begin - passed - __shfl_sync(0xffffffffu, upto - mine, at), count};
    }
    passed += __shfl_sync(0xffffffffu, upto, 31);
  }
}

__device__ inline int64_t slot_of(const Plan& plan, int range, int64_t b) { return plan.invariant ? range : range + b; }

// Scratch: first D floats a slot and row, then the largest score and the sum of weights of each.
__device__ inline float* partial_values(const PagedAttentionArgs& a, int64_t slot, int64_t row) {
  return static_cast<float*>(a.scratch) + (slot * a.H * a.T + row) * a.D;
}
__device__ inline float2* partial_state(const PagedAttentionArgs& a, const Plan& plan, int64_t slot, int64_t row) {
  return reinterpret_cast<float2*>(static_cast<float*>(a.scratch) + plan.slots * a.H * a.T * a.D +
                                   plan.slots * a.H * a.T * a.D % 2) +
         slot * a.H * a.T + row;
}

// The kernel of one storage, launched; `nullptr` for what a device or a shape has none for.
using Launch = Status (*)(const PagedAttentionArgs&, const Plan&, Stream);

struct Kernel {
  Launch launch;
  int tile;        // tokens
  int warp_bytes;  // shared memory of a warp
};

Kernel half_kernel(int64_t D);
Kernel bfloat_kernel(int64_t D);
Kernel fp8_kernel(int64_t D);
Kernel q8_kernel(int64_t D);
Kernel q4_kernel(int64_t D);
Kernel q8_q4_kernel(int64_t D);
Kernel plain_kernel(const PagedAttentionArgs& a);
Status combine(const PagedAttentionArgs&, const Plan&, bool rotated, Stream);

}  // namespace nybble::cuda::paged
