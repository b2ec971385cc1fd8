// The tiles of Hopper's kernels for many rows, see wide_sm90.cuh, and how their stages lie in shared memory.
#pragma once
#include <cstdint>

#include "cuda/codec/tile.cuh"

namespace nybble::cuda::wide {

constexpr int kStepRows = 64;  // k of one box of x: 128 bytes, what the swizzle spans
constexpr int kMaxStages = 24;
constexpr int kBarrierBytes = 1024;  // room for the barriers before the stages

struct Shape {                       // how shared memory is cut up
  int stages;                        // in the ring
  int stage_bytes;                   // of one: x, weights, scales, zeros
  int weight_at, scale_at, zero_at;  // from the start of a stage
  int span;                          // groups of a stage's box

  int bytes() const { return stages * stage_bytes; }
};

// A tile: kGroups warpgroups of 64 kM columns each, kRows rows; kBlocks k blocks a stage. kCluster blocks with
// neighbouring tiles go through k together, and each brings its share of x to all.
template <typename Number, int groups, int m, int rows, int blocks, int cluster>
struct Columns {
  using T = Number;
  static constexpr int kGroups = groups, kM = m, kRows = rows, kBlocks = blocks;
  static constexpr int kCluster = cluster;
  static constexpr bool kByWarps = false;
  static constexpr int kWarps = kGroups * 4;          // that multiply
  static constexpr int kThreads = kWarps * 32 + 128;  // and a warpgroup of which two threads copy
  static constexpr int kColumns = kGroups * kM * 64;
  static constexpr int kColumnBlocks = kColumns / kTileColumns;
  static constexpr int kXBytes = kRows * 128 * (kBlocks / 2);
  // Of a thread that multiplies and of one that copies; together what the threads have at the start.
  static constexpr int kRegisters = kWarps == 8 ? 232 : 112;
  static constexpr int kCopierRegisters = kWarps == 8 ? 40 : 32;
};

// For matrices in runs, see in_runs(). kBatch k blocks are multiplied at once, 4 or 1: of few rows, whose products are
// soon done, 4, and other warpgroups decode meanwhile; of many 1, and the warpgroup decodes the next one meanwhile.
template <typename Number, int groups, int m, int rows, int blocks, int batch, int cluster = 1>
struct RunTile : Columns<Number, groups, m, rows, blocks, cluster> {
  static constexpr bool kPlain = true;
  static constexpr int kBatch = batch, kSets = batch == 1 ? 2 : 1;  // sets of operand registers
  static constexpr bool kPowers = rows <= 64;                       // see wide_powers.cuh
};

// For all matrices, k block by k block: kSets - 1 of them may be on their way.
template <typename Number, int groups, int m, int rows, int blocks, int sets, int cluster = 1>
struct MixedTile : Columns<Number, groups, m, rows, blocks, cluster> {
  static constexpr bool kPlain = false;
  static constexpr int kSets = sets;
};

// Few rows, multiplied by warps each for itself: two halves of 8 warps, each with half of a stage's k blocks; a warp
// has two column blocks. kPlain: all is 4 bits, and each half of a stage in one group.
template <typename Number, int rows, int blocks, bool plain>
struct WarpTile {
  using T = Number;
  static constexpr bool kPlain = plain, kByWarps = true;
  static constexpr int kGroups = 2, kM = 2, kRows = rows, kBlocks = blocks, kCluster = 1;
  static constexpr int kWarps = 16;
  static constexpr int kThreads = kWarps * 32 + 128;
  static constexpr int kColumns = 256;
  static constexpr int kColumnBlocks = kColumns / kTileColumns;
  static constexpr int kXBytes = kRows * 128 * (kBlocks / 2);
  static constexpr int kRegisters = 112;  // see Columns
  static constexpr int kCopierRegisters = 32;
};

struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void next(int stages) {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

}  // namespace nybble::cuda::wide
