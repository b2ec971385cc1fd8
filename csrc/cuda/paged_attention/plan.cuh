// Who takes which tokens. The tokens a sequence's queries see are cut into tiles; the tiles of all sequences, one after
// the other, are cut into `ranges` of equal size, whatever the lengths. A worker is one warp: one range of one virtual
// head, which is a KV head with up to 8 of the query rows that share it. So 8 warps of a block read neighbouring heads
// of the same tokens at the same time.
//
//   sequence        0               1   2                   |  a worker gives one partial result (sum of weighted
//   tiles      [. . . . . . . .][. . .][. . . . . . .]      |  values, largest score, sum of weights) for each sequence
//   ranges     0 0 0 0 0 0 1 1   1 1 1  1 2 2 2 2 2 2       |  that it touches, in a slot of its own: range + sequence
//
// Or a range is a block's (Plan::blocks), whose warps share each sequence in it (join.cuh).
//
// Batch invariant: a fixed number of ranges a sequence, so that the cuts follow from its length alone.
#pragma once
#include "cuda/common/launch.cuh"
#include "ops/paged_attention.h"

namespace nybble::cuda::paged {

constexpr int kRows = 8;          // query rows of a worker: the columns of an 8-column matrix product
constexpr int kTeam = 8;          // warps that copy together, where they do
constexpr int kShare = 8;         // warps that share a range, where they do
constexpr int kMostBlocks = 255;  // of a head: a counter has 8 bits beside its mark (join.cuh)
constexpr int kSegments = 64;     // ranges of a sequence, batch invariant

// Distances in a cache, small enough for 32 bits: data in 16 bytes, scales in those of one token and head.
struct Reach {
  unsigned page, slot, head, scales_page, scales_slot, scales_head;
};

struct Plan {
  int tile_shift;      // tokens of a tile: 1 << tile_shift
  int ranges;          // in all; batch invariant: of a sequence
  int heads;           // virtual heads
  int blocks_of_head;  // virtual heads of a KV head
  int group;           // query heads of a KV head
  int rows;            // query rows of a KV head: T * group
  int most;            // tokens of a sequence at most
  unsigned window;     // of a query; 2^31 - 1: all
  int warps;           // of a thread block
  bool team;           // the warps of a block take neighbouring KV heads and copy together
  int blocks;          // of a virtual head, where a range is a block's (join.cuh); 0: a warp's
  uint64_t mark;       // of this call
  int64_t slots;       // partial results of one row
  int page_shift;      // of a power of two; -1: of another size
  Reach keys, values;
};

// The page that holds a token, counted along its sequence.
__device__ inline int page_of(const PagedAttentionArgs& a, const Plan& plan, int token) {
  return plan.page_shift >= 0 ? token >> plan.page_shift : token / static_cast<int>(a.page);
}

__device__ inline int clamped(const Plan& plan, int64_t length) {
  return length < 0 ? 0 : length > plan.most ? plan.most : static_cast<int>(length);
}
__device__ inline int length_of(const PagedAttentionArgs& a, const Plan& plan, int64_t b) {
  return clamped(plan, a.lengths[b]);
}

// The first token that any query of a sequence sees.
__device__ inline int first_seen(const PagedAttentionArgs& a, int length) {
  if (a.window == 0) return 0;
  const int64_t first = length - a.T - a.window + 1;
  return first > 0 ? static_cast<int>(first) : 0;
}

struct Tiles {
  int first, last;
};
__device__ inline Tiles tiles_of(const PagedAttentionArgs& a, const Plan& plan, int length) {
  return {first_seen(a, length) >> plan.tile_shift, (length + (1 << plan.tile_shift) - 1) >> plan.tile_shift};
}

__device__ inline int count_of(const PagedAttentionArgs& a, const Plan& plan, int64_t b) {
  const Tiles tiles = tiles_of(a, plan, length_of(a, plan, b));
  return tiles.last - tiles.first;
}

// So many tiles cut into ranges: the first `larger` of them have size + 1 tiles, the others size.
struct Cuts {
  int size = 0, larger = 0;
  Cuts() = default;
  __device__ Cuts(int tiles, int ranges) : size(tiles / ranges), larger(tiles - size * ranges) {}
  __device__ int begin(int range) const { return range * size + min(range, larger); }
  __device__ int range_of(int tile) const {
    const int edge = larger * (size + 1);
    const bool before = tile < edge;  // one division, not two
    return (before ? 0 : larger) + (before ? tile : tile - edge) / (before ? size + 1 : size);
  }
};

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
#pragma unroll
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
  Cuts cuts;  // of all tiles, unless invariant
};
// `one`: of one sequence, known when this is compiled.
__device__ inline Work work_of(const PagedAttentionArgs& a, const Plan& plan, int range, bool one = false) {
  if (a.invariant && !one) {
    const int64_t b = range / plan.ranges;
    const int part = range % plan.ranges;
    const Cuts cuts(count_of(a, plan, b), plan.ranges);
    return {b, cuts.begin(part), cuts.begin(part + 1) - cuts.begin(part), {}};
  }
  one = one || a.B == 1;
  const Cuts cuts(one ? count_of(a, plan, 0) : tiles_before(a, plan, 0).all, plan.ranges);
  const int begin = cuts.begin(range), count = cuts.begin(range + 1) - begin, lane = threadIdx.x % 32;
  if (count == 0 || one) return {0, begin, count, cuts};
  int passed = 0;
  for (int64_t b = 0; b < a.B; b += 32) {
    const int mine = b + lane < a.B ? count_of(a, plan, b + lane) : 0;
    int upto = mine;  // and those before it in this group of 32
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, upto, offset);
      if (lane >= offset) upto += other;
    }
    const unsigned beyond = __ballot_sync(0xffffffffu, passed + upto > begin);
    if (beyond != 0) {
      const int at = __ffs(static_cast<int>(beyond)) - 1;
      return {b + at, begin - passed - __shfl_sync(0xffffffffu, upto - mine, at), count, cuts};
    }
    passed += __shfl_sync(0xffffffffu, upto, 31);
  }
  return {};  // never, as tile `begin` is below their sum; but lengths may change while they are guessed from
}

// What a warp has of tiles that are all its range has of a sequence.
__device__ inline Tiles share_of(const Plan& plan, Tiles all) {
  if (plan.blocks == 0) return all;
  const Cuts cuts(all.last - all.first, kShare);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  return {all.first + cuts.begin(warp), all.first + cuts.begin(warp + 1)};
}

// A worker's partial result of a sequence.
__device__ inline int64_t slot_of(const PagedAttentionArgs& a, int range, int64_t b) {
  return a.invariant ? range : range + b;
}

// Scratch: first D floats a slot and row, then the largest score and the sum of weights of each.
__device__ inline float* partial_values(const PagedAttentionArgs& a, int64_t slot, int64_t row) {
  return static_cast<float*>(a.scratch) + (slot * a.H * a.T + row) * a.D;
}
__device__ inline float2* partial_state(const PagedAttentionArgs& a, const Plan& plan, int64_t slot, int64_t row) {
  return reinterpret_cast<float2*>(static_cast<float*>(a.scratch) + plan.slots * a.H * a.T * a.D +
                                   plan.slots * a.H * a.T * a.D % 2) +
         slot * a.H * a.T + row;
}

inline int64_t workers_of(const PagedAttentionArgs& a, const Plan& plan) {
  return static_cast<int64_t>(plan.heads) * plan.ranges * (a.invariant ? a.B : 1);
}

// The kernel of one storage, launched; `nullptr` for what a device or a shape has none for.
using Launch = Status (*)(const PagedAttentionArgs&, const Plan&, Stream);

struct Kernel {
  Launch launch;
  int tile_shift;  // tokens: 1 << tile_shift
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
