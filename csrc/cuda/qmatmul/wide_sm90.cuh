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
// A warpgroup decodes the next k block while the tensor cores are at the one before. Few rows are multiplied by warps,
// each for itself, see WarpTile. Tiles are shared out, and the last of them cut, as wide.cuh says.
#pragma once
#include <cuda.h>

#include "cuda/codec/scaled.cuh"
#include "cuda/common/hopper.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/qmatmul/wide.cuh"

namespace nybble::cuda::wide {

constexpr int kStepRows = 64;  // k of one box of x: 128 bytes, what the swizzle spans
constexpr int kMaxStages = 24;
constexpr int kBarrierBytes = 1024;  // room for the barriers before the stages

// How the copy engine finds its boxes. A box of weights, scales or zeros is a stage's, of all columns of the tile.
struct Maps {
  CUtensorMap x;          // [M, K], boxes of kRows x 64
  CUtensorMap weight[6];  // [NB, bytes] for each width
  CUtensorMap scale;      // [NB, 16 G]
  CUtensorMap zero;
};

__host__ __device__ constexpr int width_index(int bits) { return bits == 8 ? 5 : bits - 2; }

struct Shape {                       // how shared memory is cut up
  int stages;                        // in the ring
  int stage_bytes;                   // of one: x, weights, scales, zeros
  int weight_at, scale_at, zero_at;  // from the start of a stage
  int span;                          // groups of a stage's box
};

// A tile: kGroups warpgroups of 64 kM columns each, kRows rows; kBlocks k blocks a stage.
template <typename Number, int groups, int m, int rows, int blocks, int buffers, int cluster>
struct Tile {
  using T = Number;
  static constexpr int kGroups = groups, kM = m, kRows = rows, kBlocks = blocks, kBuffers = buffers;
  static constexpr int kCluster =
      cluster;  // blocks of neighbouring columns, each of which brings its share of x to all
  static constexpr int kHalves = 1;
  static constexpr int kWarps = kGroups * 4;          // that multiply
  static constexpr int kThreads = kWarps * 32 + 128;  // and a warpgroup of which one thread copies
  static constexpr int kColumns = kGroups * kM * 64;
  static constexpr int kColumnBlocks = kColumns / kTileColumns;
  static constexpr int kXBytes = kRows * 128 * (kBlocks / 2);
  // Of a thread that multiplies and of one that copies; together what the threads have at the start.
  static constexpr int kRegisters = kGroups == 2 ? 232 : kRows > 64 ? 112 : 104;
  static constexpr int kCopierRegisters = kGroups == 2 ? 40 : kRows > 64 ? 32 : 64;
};

// A tile of few rows, multiplied by warps each for itself: two halves of 8 warps, each with half of a stage's k blocks;
// a warp has two column blocks.
template <typename Number, int rows, int blocks>
struct WarpTile {
  using T = Number;
  static constexpr int kGroups = 2, kM = 2, kRows = rows, kBlocks = blocks, kCluster = 1, kHalves = 2;
  static constexpr int kWarps = 16;
  static constexpr int kThreads = kWarps * 32 + 128;
  static constexpr int kColumns = 256;
  static constexpr int kColumnBlocks = kColumns / kTileColumns;
  static constexpr int kXBytes = kRows * 128 * (kBlocks / 2);
  static constexpr int kRegisters = 112;  // see Tile
  static constexpr int kCopierRegisters = 32;
};

struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void next(int stages) {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

// A warp has read a stage: all who write to it must know.
template <typename Tile>
__device__ void release(Barrier* empty) {
  const int lane = threadIdx.x % 32;
  if constexpr (Tile::kCluster == 1) {
    if (lane == 0) empty->arrive();
  } else {
    if (lane < Tile::kCluster) empty->arrive_at(lane);
  }
}

// sums += the product over stages [from, to) of a segment. The warps decode a k block while the tensor cores multiply
// the ones before: kBuffers - 1 of them may be on their way. With kBits, all stages are full and in one group each.
template <typename Tile, int kBits, bool kZeros>
__device__ void multiply_stages(const Segment& s, int from, int to, const Shape& shape, const uint8_t* memory,
                                Barrier* full, Barrier* empty, Ring& ring, float (&sums)[Tile::kM][Tile::kRows / 2]) {
  using T = typename Tile::T;
  constexpr bool kPlain = kBits != 0;
  constexpr int kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks, kBuffers = Tile::kBuffers;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column_block = warp / 4 * kM * 4 + warp % 4;
  const uint8_t* own_weight = memory + shape.weight_at + column_block * kBlocks * 64 * (kPlain ? kBits : s.bits);
  const uint8_t* own_scale = memory + shape.scale_at + column_block * shape.span * kTileColumns * 2;
  const uint8_t* own_zero = memory + shape.zero_at + column_block * shape.span * kTileColumns * 4;
  const auto numbers_of = [&](int offset, int group, int b) {
    const int at = (4 * b * (kPlain ? 1 : shape.span) + group) * kTileColumns;
    Numbers numbers;
    numbers.load<kZeros>(reinterpret_cast<const __half*>(own_scale + offset) + at,
                         reinterpret_cast<const float*>(own_zero + offset) + at);
    return numbers;
  };
  const auto words_of = [&](auto bits, int offset, int kb, int b) {
    TileLane<decltype(bits)::value> words;
    words.load(own_weight + offset + (4 * b * kBlocks + kb) * 64 * decltype(bits)::value, lane);
    return words;
  };
  uint32_t a[kBuffers][kM][8];
  int last = -1;  // the stage before, while its products may still run
#pragma unroll 1
  for (int i = from; i < to; ++i) {
    const int here = kPlain ? kBlocks : min(kBlocks, s.count - i * kBlocks);  // fewer only at the segment's end
    const int offset = ring.stage * shape.stage_bytes;
    const uint32_t x = swizzled_operand(shared_address(memory + offset));
    full[ring.stage].wait(ring.phase);
    [[maybe_unused]] TileLane<kPlain ? kBits : 2> words[kBlocks][kM];  // all of a stage at once: one latency
    [[maybe_unused]] Numbers numbers[kM];
    if constexpr (kPlain) {
#pragma unroll
      for (int b = 0; b < kM; ++b) {
        numbers[b] = numbers_of(offset, 0, b);
#pragma unroll
        for (int kb = 0; kb < kBlocks; ++kb)
          words[kb][b] = words_of(std::integral_constant<int, kBits>{}, offset, kb, b);
      }
    }
#pragma unroll
    for (int kb = 0; kb < kBlocks; ++kb) {
      if (kb < here) {
        auto& mine = a[kb % kBuffers];
        if constexpr (kPlain) {
#pragma unroll
          for (int b = 0; b < kM; ++b) decode_scaled<T, kBits, kZeros>(words[kb][b], numbers[b], mine[b]);
        } else {
          const int group = shape.span == 1 ? 0 : s.group_of(i * kBlocks + kb) - s.group_of(i * kBlocks);
          with_bits(s.bits, [&](auto bits) {
#pragma unroll
            for (int b = 0; b < kM; ++b)
              decode_scaled<T, decltype(bits)::value, kZeros>(words_of(bits, offset, kb, b),
                                                              numbers_of(offset, group, b), mine[b]);
          });
        }
        product_fence();
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const uint32_t b16 = x + kb / 2 * kRows * 8 + kb % 2 * 4 + step * 2;
#pragma unroll
          for (int b = 0; b < kM; ++b)
            product<T, kRows>(sums[b], mine[b][4 * step], mine[b][4 * step + 1], mine[b][4 * step + 2],
                              mine[b][4 * step + 3], b16);
        }
        product_commit();
        product_wait<kBuffers - 1>();
        if (kb == kBuffers - 2) {
          if (last >= 0) release<Tile>(empty + last);
          last = -1;
        }
      }
    }
    if (i + 1 < to) last = ring.stage, ring.next(shape.stages);
  }
  product_wait<0>();
  if (last >= 0) release<Tile>(empty + last);
  release<Tile>(empty + ring.stage);
  ring.next(shape.stages);
}

// Keeps a value in a register: the compiler would rather work it out anew in every turn of a loop.
__device__ inline int kept(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// The same by mma.sync, the warp's half of each stage: up to 32 rows, as a warp waits for no other. With kBits, a
// half's k blocks are in one group, whose scale its sums are multiplied by.
template <typename Tile, int kBits, bool kZeros>
__device__ void multiply_halves(const Segment& s, int from, int to, const Shape& shape, const uint8_t* memory,
                                const Barrier* full, const Barrier* empty, Ring& ring,
                                float (&sums)[Tile::kM][Tile::kRows / 2]) {
  using T = typename Tile::T;
  constexpr bool kPlain = kBits != 0;
  constexpr int kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks, kOwn = kBlocks / 2;
  const int lane = kept(threadIdx.x % 32), half = threadIdx.x / 256;
  const int column_block = threadIdx.x / 128 % 2 * kM * 4 + threadIdx.x / 32 % 4;
  const int bits = kPlain ? kBits : s.bits, stage_bytes = kept(shape.stage_bytes), stages = kept(shape.stages);
  const unsigned full_at = kept(shared_address(full)), empty_at = kept(shared_address(empty));
  const int own_weight = kept(shape.weight_at + (column_block * kBlocks + half * kOwn) * 64 * bits);
  const int own_number = kept((column_block * shape.span + (kPlain ? half * (shape.span - 1) : 0)) * kTileColumns);
  const int next_number = kept(4 * shape.span * kTileColumns);  // of the second column block
  const auto numbers_of = [&](int offset, int group, int b) {
    const int at = own_number + b * next_number + group * kTileColumns;
    Numbers numbers;
    numbers.load<kZeros>(reinterpret_cast<const __half*>(memory + shape.scale_at + offset) + at,
                         reinterpret_cast<const float*>(memory + shape.zero_at + offset) + at);
    return numbers;
  };
  const auto words_of = [&](auto width, int offset, int i, int b) {
    TileLane<decltype(width)::value> words;
    words.load(memory + own_weight + offset + (4 * b * kBlocks + i) * 64 * decltype(width)::value, lane);
    return words;
  };
  // Of the half's boxes of x: row lane % 8, and of its 16-byte pieces, swizzled, number lane / 8; an odd k block's is
  // 64 bytes away, up or down.
  const unsigned own_x =
      kept(shared_address(memory) + (half * (kOwn / 2) * kRows + lane % 8) * 128 + (lane / 8 ^ lane % 8) * 16);
#pragma unroll 1
  for (int i = from; i < to; ++i) {
    const int here = kPlain ? kOwn : min(kOwn, s.count - i * kBlocks - half * kOwn);  // fewer at the segment's end
    const int offset = ring.stage * stage_bytes;
    wait_at_barrier(full_at + 8 * ring.stage, ring.phase);
    [[maybe_unused]] Numbers numbers[kM];
    [[maybe_unused]] float group_sums[kM][kRows / 2];
    if constexpr (kPlain) {
#pragma unroll
      for (int b = 0; b < kM; ++b) {
        numbers[b] = numbers_of(offset, 0, b);
#pragma unroll
        for (int j = 0; j < kRows / 2; ++j) group_sums[b][j] = 0.0f;
      }
    }
#pragma unroll
    for (int kb = 0; kb < kOwn; ++kb) {
      if (kb < here) {
        uint32_t a[kM][8];
        if constexpr (kPlain) {
#pragma unroll
          for (int b = 0; b < kM; ++b)
            decode_shifted<T, kBits, kZeros>(words_of(std::integral_constant<int, kBits>{}, offset, kb, b), numbers[b],
                                             reinterpret_cast<typename Pair<T>::type(&)[8]>(a[b]));
        } else {
          const int at = i * kBlocks + half * kOwn + kb;
          const int group = shape.span == 1 ? 0 : s.group_of(at) - s.group_of(i * kBlocks);
          with_bits(s.bits, [&](auto width) {
#pragma unroll
            for (int b = 0; b < kM; ++b)
              decode_scaled<T, decltype(width)::value, kZeros>(words_of(width, offset, kb, b),
                                                               numbers_of(offset, group, b), a[b]);
          });
        }
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j) {
          uint32_t x[4];
          load_matrices<false>(x, (own_x ^ kb % 2 * 64) + offset + kb / 2 * kRows * 128 + j * 1024);
#pragma unroll
          for (int step = 0; step < 2; ++step)
#pragma unroll
            for (int b = 0; b < kM; ++b)
              multiply_add<T>(reinterpret_cast<float (&)[4]>((kPlain ? group_sums : sums)[b][4 * j]),
                              reinterpret_cast<const uint32_t (&)[4]>(a[b][4 * step]), x[2 * step], x[2 * step + 1]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) arrive_at_barrier(empty_at + 8 * ring.stage);
    ring.next(stages);
    if constexpr (kPlain) {
#pragma unroll
      for (int b = 0; b < kM; ++b)
#pragma unroll
        for (int j = 0; j < kRows / 2; ++j)
          sums[b][j] = fmaf(group_sums[b][j], __half2float(numbers[b].scale[j / 2 % 2]), sums[b][j]);
    }
  }
}

// The sums of both halves, each warp's for half of the rows.
template <typename Tile>
__device__ void join_halves(float4* exchange, const float (&sums)[Tile::kM][Tile::kRows / 2],
                            float (&joined)[Tile::kM][Tile::kRows / 4]) {
  constexpr int kM = Tile::kM, kEach = Tile::kRows / 16;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = warp / 8;
  const auto meet = [&] { asm volatile("bar.sync %0, 64;" ::"r"(1 + warp % 8) : "memory"); };  // the other half's warp
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
#pragma unroll
    for (int b = 0; b < kM; ++b) {
      const float *low = &sums[b][4 * j], *high = &sums[b][4 * (j + kEach)];
      exchange[(warp * kM + b) * 32 + lane] =
          half == 0 ? make_float4(high[0], high[1], high[2], high[3]) : make_float4(low[0], low[1], low[2], low[3]);
    }
    meet();
#pragma unroll
    for (int b = 0; b < kM; ++b) {
      const float4 v = exchange[((warp ^ 8) * kM + b) * 32 + lane];
      const float other[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int e = 0; e < 4; ++e)
        joined[b][4 * j + e] = (half == 0 ? sums[b][4 * j + e] : sums[b][4 * (j + kEach) + e]) + other[e];
    }
    meet();
  }
}

// Calls copy(work, segment, stage of the segment, its place in memory, its barrier) for every stage of the block's
// work, as the stages of the ring become free.
template <typename Tile, typename Copy>
__device__ void fill_ring(const Matrix& m, const Shape& shape, const Plan& plan, uint8_t* memory, Barrier* full,
                          Barrier* empty, Copy copy) {
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
  }
}

template <typename Tile, bool kZeros>
__device__ void copy_weights(const Matrix& m, const Maps& maps, const Shape& shape, const Plan& plan, uint8_t* memory,
                             Barrier* full, Barrier* empty, int rank) {
  constexpr int kBlocks = Tile::kBlocks, kColumnBlocks = Tile::kColumnBlocks;
  fill_ring<Tile>(
      m, shape, plan, memory, full, empty,
      [&](const Work& work, const Segment& s, int i, uint8_t* stage, Barrier* barrier) {
        const auto [row_tile, column_tile] = place_of(work.tile, plan.row_tiles, plan.column_tiles);
        const int block = (column_tile * Tile::kCluster + rank) * kColumnBlocks;
        const int group = (s.group + s.group_of(i * kBlocks)) * kTileColumns;
        barrier->arrive_expecting(kColumnBlocks * (kBlocks * 64 * s.bits + shape.span * (kZeros ? 96 : 32)));
        copy_box(stage + shape.weight_at, &maps.weight[width_index(s.bits)], (s.offset + i * kBlocks * s.bits) * 8,
                 block, barrier);
        copy_box(stage + shape.scale_at, &maps.scale, group, block, barrier);
        if constexpr (kZeros) copy_box(stage + shape.zero_at, &maps.zero, group, block, barrier);
      });
}

template <typename Tile>
__device__ void copy_x(const Matrix& m, const Maps& maps, const Shape& shape, const Plan& plan, uint8_t* memory,
                       Barrier* full, Barrier* empty, int rank) {
  constexpr int kShare = Tile::kRows / Tile::kCluster;  // rows that this block brings
  fill_ring<Tile>(m, shape, plan, memory, full, empty,
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
                  });
}

template <typename Tile, int kBits, bool kZeros>  // kBits 0: a mixture
__global__ void __launch_bounds__(Tile::kThreads, 1) NYBBLE_CLUSTER(Tile::kCluster)
    wide_kernel(const __grid_constant__ Matrix m,     //
                const __grid_constant__ Maps maps,    //
                const __grid_constant__ Shape shape,  //
                const Plan plan,                      //
                const Output<typename Tile::T> o,     //
                float4* pieces) {                     // sums of pieces of tiles, see add_pieces_kernel
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kGroups = Tile::kGroups, kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks;
  constexpr int kColumns = Tile::kColumns;
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ Barrier full[kMaxStages], empty[kMaxStages];
  [[maybe_unused]] __shared__ float4 exchange[Tile::kHalves == 2 ? Tile::kWarps * kM * 32 : 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
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
    if (warp > Tile::kWarps + 1 || lane != 0) return;
    if (warp == Tile::kWarps) {
      copy_weights<Tile, kZeros>(m, maps, shape, plan, memory, full, empty, rank);
    } else {
      wait_for_previous();
      let_next_begin();
      copy_x<Tile>(m, maps, shape, plan, memory, full, empty, rank);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Tile::kRegisters));
    const int group = warp / 4 % kGroups;
    float sums[kM][kRows / 2];
    Works works(plan, blockIdx.x / Tile::kCluster);
    Work work;
    Ring ring;
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
        if constexpr (Tile::kHalves == 2)
          multiply_halves<Tile, kBits, kZeros>(s, from, to, shape, memory, full, empty, ring, sums);
        else
          multiply_stages<Tile, kBits, kZeros>(s, from, to, shape, memory, full, empty, ring, sums);
      }
      wait_for_previous();  // y may still be read, and `add` written
      const auto [row_tile, column_tile] = place_of(work.tile, plan.row_tiles, plan.column_tiles);
      const int64_t row = static_cast<int64_t>(row_tile) * kRows;
      const int64_t n =
          (static_cast<int64_t>(column_tile) * Tile::kCluster + rank) * kColumns + (group * kM * 4 + warp % 4) * 16;
      float4* piece =
          pieces +
          ((static_cast<int64_t>(work.slot) * Tile::kCluster + rank) * kGroups + group) * kM * (kRows / 8) * 128 +
          threadIdx.x % 128;
      if constexpr (Tile::kHalves == 2) {
        const int half = warp / 8;
        float joined[kM][kRows / 4];
        join_halves<Tile>(exchange, sums, joined);
        store_sums<typename Tile::T, kM, kRows / 2, kRows>(o, row + half * kRows / 2, n, work.slot < 0,
                                                           piece + half * (kRows / 16) * 128, joined);
      } else {
        store_sums<typename Tile::T, kM, kRows>(o, row, n, work.slot < 0, piece, sums);
      }
    }
    if constexpr (Tile::kCluster > 1) meet_cluster();  // nobody leaves whose barriers a peer may still arrive at
  }
#endif
}

}  // namespace nybble::cuda::wide
