// How a warpgroup, or a warp, of Hopper's kernels for many rows multiplies the stages of a tile: one way for each kind
// of tile of wide_sm90_tiles.cuh.
#pragma once
#include <type_traits>

#include "cuda/codec/scaled.cuh"
#include "cuda/common/hopper.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/qmatmul/wide.h"
#include "cuda/qmatmul/wide_sm90_tiles.cuh"

namespace nybble::cuda::wide {

// The same in all lanes, and known to be.
__device__ inline uint32_t uniform(uint32_t v) { return __shfl_sync(0xffffffffu, v, 0); }

// sums += a k block of W, decoded, times x. Without kAdd: sums =.
template <typename T, int kRows, int kM, bool kAdd>
__device__ void multiply_block(float (&sums)[kM][kRows / 2], const uint32_t (&a)[kM][8], uint32_t x) {
#pragma unroll
  for (int b = 0; b < kM; ++b) product<T, kRows, kAdd>(sums[b], a[b][0], a[b][1], a[b][2], a[b][3], x);
#pragma unroll
  for (int b = 0; b < kM; ++b) product<T, kRows>(sums[b], a[b][4], a[b][5], a[b][6], a[b][7], x + 2);
}

// A warp has read a stage: all blocks that write to it must know.
template <int kCluster>
__device__ void release(unsigned empty, int lane) {
  if constexpr (kCluster == 1) {
    if (lane == 0) arrive_at_barrier(empty);
  } else {
    if (lane < kCluster) arrive_at_barrier_of(lane, empty);
  }
}

// Keeps a value in a register: the compiler would rather work it out anew in every turn of a loop.
__device__ inline int kept(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// sums += the product over stages [from, to) of a segment. The warps decode a k block while the tensor cores multiply
// the ones before: kSets - 1 of them may be on their way.
template <typename Tile, bool kZeros>
__device__ void multiply_stages(const Segment& s, int from, int to, const Shape& shape, const uint8_t* memory,
                                Barrier* full, Barrier* empty, Ring& ring, float (&sums)[Tile::kM][Tile::kRows / 2]) {
  using T = typename Tile::T;
  constexpr int kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks, kSets = Tile::kSets;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column_block = warp / 4 * kM * 4 + warp % 4;
  const uint8_t* own_weight = memory + shape.weight_at + column_block * kBlocks * 64 * s.bits;
  const uint8_t* own_scale = memory + shape.scale_at + column_block * shape.span * kTileColumns * 2;
  const uint8_t* own_zero = memory + shape.zero_at + column_block * shape.span * kTileColumns * 4;
  const auto release_stage = [&](int stage) { release<Tile::kCluster>(shared_address(empty + stage), lane); };
  uint32_t a[kSets][kM][8];
  int last = -1;  // the stage before, while its products may still run
#pragma unroll 1
  for (int i = from; i < to; ++i) {
    const int here = min(kBlocks, s.count - i * kBlocks);  // fewer only at the segment's end
    const int offset = ring.stage * shape.stage_bytes;
    const uint32_t x = uniform(swizzled_operand(shared_address(memory + offset)));
    full[ring.stage].wait(ring.phase);
#pragma unroll
    for (int kb = 0; kb < kBlocks; ++kb) {
      if (kb < here) {
        auto& mine = a[kb % kSets];
        const int group = shape.span == 1 ? 0 : s.group_of(i * kBlocks + kb) - s.group_of(i * kBlocks);
        with_bits(s.bits, [&](auto bits) {
#pragma unroll
          for (int b = 0; b < kM; ++b) {
            const int at = (4 * b * shape.span + group) * kTileColumns;
            TileLane<decltype(bits)::value> words;
            words.load(own_weight + offset + (4 * b * kBlocks + kb) * 64 * decltype(bits)::value, lane);
            Numbers numbers;
            numbers.load<kZeros>(reinterpret_cast<const __half*>(own_scale + offset) + at,
                                 reinterpret_cast<const float*>(own_zero + offset) + at);
            decode_scaled<T, decltype(bits)::value, kZeros>(words, numbers, mine[b]);
          }
        });
        product_fence();
        multiply_block<T, kRows, kM, true>(sums, mine, x + kb / 2 * kRows * 8 + kb % 2 * 4);
        product_commit();
        product_wait<kSets - 1>();
        if (kb == kSets - 2) {
          if (last >= 0) release_stage(last);
          last = -1;
        }
      }
    }
    if (i + 1 < to) last = ring.stage, ring.next(shape.stages);
  }
  product_wait<0>();
  if (last >= 0) release_stage(last);
  release_stage(ring.stage);
  ring.next(shape.stages);
}

// The same where all is 4 bits in groups of whole runs of 4 k blocks, of which a stage has one or two. Up to 32 rows
// the scale of a run is applied to its sums: they are fewer than its codes.
template <typename Tile, bool kZeros>
__device__ void multiply_runs(const Segment& s, int from, int to, const Shape& shape, const uint8_t* memory,
                              const Barrier* full, const Barrier* empty, Ring& ring,
                              float (&sums)[Tile::kM][Tile::kRows / 2]) {
  using T = typename Tile::T;
  constexpr int kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks, kBatch = Tile::kBatch, kSets = Tile::kSets;
  constexpr int kRuns = kBlocks / kRunBlocks, kBytes = 64 * 4;
  static_assert(kRunBlocks % kBatch == 0 && kRuns * kRunBlocks / kBatch % kSets == 0);
  constexpr bool kScaleSums = kRows <= 32;
  const int lane = kept(threadIdx.x % 32), warp = threadIdx.x / 32;
  const int column_block = warp / 4 * kM * 4 + warp % 4;
  const int stage_bytes = kept(shape.stage_bytes), stages = kept(shape.stages);
  const unsigned full_at = kept(shared_address(full)), empty_at = kept(shared_address(empty));
  const int own_weight = kept(shape.weight_at + column_block * kBlocks * kBytes + lane * 8);
  const int own_number = kept(column_block * shape.span * kTileColumns);
  const auto release_stage = [&](int stage) { release<Tile::kCluster>(empty_at + 8 * stage, lane); };
  uint32_t a[kSets][kBatch][kM][8];
  int last = -1;  // the stage before, while its products may still run
#pragma unroll 1
  for (int i = from; i < to; ++i) {
    const int offset = ring.stage * stage_bytes;
    const uint32_t x = uniform(swizzled_operand(shared_address(memory + offset)));
    wait_at_barrier(full_at + 8 * ring.stage, ring.phase);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      if (r == 1 && s.count - i * kBlocks <= kRunBlocks) break;  // a segment may end with one run
      const int group = r == 0 || shape.span == 1 ? 0 : s.group_of(i * kBlocks + kRunBlocks) - s.group_of(i * kBlocks);
      TileLane<4> words[kRunBlocks][kM];  // all of a run at once: one latency
      Numbers numbers[kM];
#pragma unroll
      for (int b = 0; b < kM; ++b) {
#pragma unroll
        for (int kb = 0; kb < kRunBlocks; ++kb) {
          const int at = own_weight + offset + (4 * b * kBlocks + r * kRunBlocks + kb) * kBytes;
          const uint2 v = *reinterpret_cast<const uint2*>(memory + at);
          words[kb][b].word[0] = v.x, words[kb][b].word[1] = v.y;
        }
        const int at = own_number + (4 * b * shape.span + group) * kTileColumns;
        numbers[b].template load<kZeros>(reinterpret_cast<const __half*>(memory + shape.scale_at + offset) + at,
                                         reinterpret_cast<const float*>(memory + shape.zero_at + offset) + at);
      }
      [[maybe_unused]] float run_sums[kM][kRows / 2];
#pragma unroll
      for (int first = 0; first < kRunBlocks; first += kBatch) {
        auto& mine = a[(r * kRunBlocks + first) / kBatch % kSets];
        const auto free_stage = [&] {  // once the batches before are done
          if (r == 0 && first == 0 && last >= 0) release_stage(last);
        };
        if constexpr (kSets == 1) {
          product_wait<0>();
          free_stage();
        }
#pragma unroll
        for (int own = 0; own < kBatch; ++own) {
#pragma unroll
          for (int b = 0; b < kM; ++b) {
            if constexpr (kScaleSums)
              decode_shifted<T, 4, kZeros>(words[first + own][b], numbers[b],
                                           reinterpret_cast<typename Pair<T>::type(&)[8]>(mine[own][b]));
            else
              decode_scaled<T, 4, kZeros>(words[first + own][b], numbers[b], mine[own][b]);
          }
        }
        product_fence();
#pragma unroll
        for (int own = 0; own < kBatch; ++own) {
          const uint32_t from_x = x + (r * kRunBlocks + first + own) / 2 * kRows * 8 + (first + own) % 2 * 4;
          if constexpr (!kScaleSums)
            multiply_block<T, kRows, kM, true>(sums, mine[own], from_x);
          else if (first + own == 0)
            multiply_block<T, kRows, kM, false>(run_sums, mine[own], from_x);
          else
            multiply_block<T, kRows, kM, true>(run_sums, mine[own], from_x);
        }
        product_commit();
        if constexpr (kSets == 2) {
          product_wait<1>();
          free_stage();
        }
      }
      if constexpr (kScaleSums) {
        product_wait<0>();
#pragma unroll
        for (int b = 0; b < kM; ++b)
#pragma unroll
          for (int j = 0; j < kRows / 2; ++j)
            sums[b][j] = fmaf(run_sums[b][j], __half2float(numbers[b].scale[j / 2 % 2]), sums[b][j]);
      }
    }
    last = ring.stage;
    if (i + 1 < to) ring.next(stages);
  }
  product_wait<0>();
  release_stage(last);
  ring.next(stages);
}

// The same by mma.sync, the warp's half of each stage: up to 32 rows, as a warp waits for no other. With kPlain the
// scale is applied to the sums of a half.
template <typename Tile, bool kZeros>
__device__ void multiply_halves(const Segment& s, int from, int to, const Shape& shape, const uint8_t* memory,
                                const Barrier* full, const Barrier* empty, Ring& ring,
                                float (&sums)[Tile::kM][Tile::kRows / 2]) {
  using T = typename Tile::T;
  constexpr bool kPlain = Tile::kPlain;
  constexpr int kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks, kOwn = kBlocks / 2;
  const int lane = kept(threadIdx.x % 32), half = threadIdx.x / 256;
  const int column_block = threadIdx.x / 128 % 2 * kM * 4 + threadIdx.x / 32 % 4;
  const int bits = kPlain ? 4 : s.bits, stage_bytes = kept(shape.stage_bytes), stages = kept(shape.stages);
  const unsigned full_at = kept(shared_address(full)), empty_at = kept(shared_address(empty));
  const int own_weight = kept(shape.weight_at + (column_block * kBlocks + half * kOwn) * 64 * bits);
  const int own_number = kept((column_block * shape.span + (kPlain && s.per < kBlocks ? half : 0)) * kTileColumns);
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
            decode_shifted<T, 4, kZeros>(words_of(std::integral_constant<int, 4>{}, offset, kb, b), numbers[b],
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

}  // namespace nybble::cuda::wide
