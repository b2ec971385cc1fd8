// How a warpgroup, or a warp, of Hopper's kernels for many rows multiplies the stages of a tile: one way for each kind
// of tile of wide_sm90_tiles.cuh.
#pragma once
#include <climits>
#include <type_traits>

#include "cuda/codec/scaled.cuh"
#include "cuda/common/hopper.cuh"
#include "cuda/common/kept.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/qmatmul/wide.h"
#include "cuda/qmatmul/wide_powers.cuh"
#include "cuda/qmatmul/wide_sm90_tiles.cuh"

namespace nybble::cuda::wide {

// The same in all lanes, and known to be.
__device__ inline uint32_t uniform(uint32_t v) { return __shfl_sync(0xffffffffu, v, 0); }

// From shared memory, in the order of waits for barriers.
__device__ inline void load_shared(uint32_t (&v)[2], unsigned from) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "r"(from));
}
__device__ inline void load_shared(__half& v, unsigned from) {
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(reinterpret_cast<uint16_t&>(v)) : "r"(from));
}
__device__ inline void load_shared(float& v, unsigned from) {
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from));
}

// The lane's scales and zeros, of which the first are at these places.
template <bool kZeros>
__device__ Numbers load_numbers(unsigned scale, unsigned zero) {
  Numbers n;
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    load_shared(n.scale[v], scale + 16 * v);
    if constexpr (kZeros) load_shared(n.zero[v], zero + 32 * v);
  }
  return n;
}

// sums += a k block of W, decoded, times x. Without kAdd: sums =.
template <typename T, int kRows, int kM, bool kAdd>
__device__ void multiply_block(float (&sums)[kM][kRows / 2], const uint32_t (&a)[kM][8], uint64_t x) {
#pragma unroll
  for (int b = 0; b < kM; ++b) product<T, kRows, kAdd>(sums[b], a[b][0], a[b][1], a[b][2], a[b][3], x);
#pragma unroll
  for (int b = 0; b < kM; ++b) product<T, kRows>(sums[b], a[b][4], a[b][5], a[b][6], a[b][7], x + 2);
}

// An arrival at the barrier at this place in each block of the cluster.
template <int kCluster>
__device__ void arrive_in_cluster(unsigned barrier, int lane) {
  if constexpr (kCluster == 1)
    arrive_at_barrier(barrier);
  else
    arrive_at_barrier_of(lane, barrier);
}

// A warp has read a stage: all blocks that write to it must know.
template <int kCluster>
__device__ void release(Barrier* empty) {
  const int lane = threadIdx.x % 32;
  if (lane < kCluster) arrive_in_cluster<kCluster>(shared_address(empty), lane);
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
  uint32_t a[kSets][kM][8];
  int last = -1;  // the stage before, while its products may still run
#pragma unroll 1
  for (int i = from; i < to; ++i) {
    const int here = min(kBlocks, s.count - i * kBlocks);  // fewer only at the segment's end
    const int offset = ring.stage * shape.stage_bytes;
    const uint64_t x = described(uniform(swizzled_operand(shared_address(memory + offset))));
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
          if (last >= 0) release<Tile::kCluster>(empty + last);
          last = -1;
        }
      }
    }
    if (i + 1 < to) last = ring.stage, ring.next(shape.stages);
  }
  product_wait<0>();
  if (last >= 0) release<Tile::kCluster>(empty + last);
  release<Tile::kCluster>(empty + ring.stage);
  ring.next(shape.stages);
}

// The same where all is 4 bits in groups of whole runs of 4 k blocks, of which a stage has one or two. Of few rows the
// scale and the 8 are one multiply-add (Powers); in bfloat16, up to 32 rows, the scale of a run is applied to its sums,
// which are fewer than its codes. Each plain instruction is time that the tensor cores lose: places
// are worked out as steps from a stage's start. `columns`: of W, from the warp's first on.
template <typename Tile, bool kZeros>
__device__ void multiply_runs(const Segment& s, int from, int to, int columns, const Shape& shape,
                              const uint8_t* memory, const Barrier* full, const Barrier* empty, Ring& ring,
                              float (&sums)[Tile::kM][Tile::kRows / 2]) {
  using T = typename Tile::T;
  constexpr int kM = Tile::kM, kRows = Tile::kRows, kBlocks = Tile::kBlocks, kBatch = Tile::kBatch, kSets = Tile::kSets;
  constexpr int kRuns = kBlocks / kRunBlocks, kBytes = 64 * 4;
  static_assert(kRunBlocks % kBatch == 0 && kRuns * kRunBlocks / kBatch % kSets == 0);
  constexpr bool kPowers = std::is_same_v<T, __half> && Tile::kPowers;
  constexpr bool kScaleSums = kRows <= 32 && !kPowers;
  static_assert(!kPowers || kBatch == kRunBlocks);  // one wait a run
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column_block = warp / 4 * kM * 4 + warp % 4,
            first_number = column_block * shape.span * kTileColumns + lane / 4;
  const unsigned start = shared_address(memory);
  const unsigned own_weight = kept(start + shape.weight_at + column_block * kBlocks * kBytes + lane * 8);
  const unsigned own_scale = kept(start + shape.scale_at + first_number * 2);
  const unsigned own_zero = start + shape.zero_at + first_number * 4;
  const unsigned own_x = kept(swizzled_operand(start)), full_at = kept(shared_address(full));
  const int stage_bytes = kept(shape.stage_bytes), stages = kept(shape.stages);
  const int next_numbers = 4 * shape.span * kTileColumns;  // of the next column block
  // Where the second run of the last stage is missing, and the k blocks from the start of a stage to the end of its
  // group: 4 where the second run has a group of its own.
  const int cut_stage = s.count % kBlocks == 0 ? -1 : s.count / kBlocks;
  const int step = kept(s.per == kRunBlocks ? 0 : kBlocks);
  int left = (s.group_of(from * kBlocks) + 1) * s.per - from * kBlocks;
  // The barrier of the stage before, while its products may still run, in the lanes that arrive there: else negative.
  const int own_empty = kept(lane < Tile::kCluster ? static_cast<int>(shared_address(empty)) : INT_MIN / 2);
  int last = -1;
  const auto release_last = [&] {
    if (last >= 0) arrive_in_cluster<Tile::kCluster>(last, lane);
  };
  [[maybe_unused]] Powers powers[kM];
#pragma unroll
  for (int b = 0; b < kM; ++b) powers[b].begin(columns - 64 * b);
  uint32_t a[kSets][kBatch][kM][8];
#pragma unroll 1
  for (int i = from; i < to; ++i) {
    const int offset = ring.stage * stage_bytes;
    const uint64_t x = described(uniform(own_x + (offset >> 4)));
    wait_at_barrier(full_at + 8 * ring.stage, ring.phase);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      if (r == 1 && i == cut_stage) break;
      TileLane<4> words[kRunBlocks][kM];  // all of a run at once: one latency
      Numbers numbers[kM];
#pragma unroll
      for (int b = 0; b < kM; ++b) {
#pragma unroll
        for (int kb = 0; kb < kRunBlocks; ++kb)
          load_shared(words[kb][b].word, own_weight + offset + (4 * b * kBlocks + r * kRunBlocks + kb) * kBytes);
        const int at = b * next_numbers + (r == 1 && left == kRunBlocks ? kTileColumns : 0);
        numbers[b] = load_numbers<kZeros>(own_scale + offset + at * 2, own_zero + offset + at * 4);
      }
      [[maybe_unused]] __half2 scaled[kM];
      [[maybe_unused]] Powers::Less less[kM];
      if constexpr (kPowers) {
        bool fit = true;
#pragma unroll
        for (int b = 0; b < kM; ++b) scaled[b] = powers[b].scaled(numbers[b]), fit = fit && powers[b].fit(scaled[b]);
        product_wait<0>();  // all warps of the group: what follows each decides for itself
        if (__builtin_expect(!__all_sync(0xffffffffu, fit), 0)) {
#pragma unroll
          for (int b = 0; b < kM; ++b) powers[b].change(numbers[b], sums[b]), scaled[b] = powers[b].scaled(numbers[b]);
        }
#pragma unroll
        for (int b = 0; b < kM; ++b) less[b] = Powers::less<kZeros>(numbers[b], scaled[b]);
      }
      [[maybe_unused]] float run_sums[kM][kRows / 2];
#pragma unroll
      for (int first = 0; first < kRunBlocks; first += kBatch) {
        auto& mine = a[(r * kRunBlocks + first) / kBatch % kSets];
        const auto free_stage = [&] {  // once the batches before are done
          if (r == 0 && first == 0) release_last();
        };
        if constexpr (kSets == 1) {
          if constexpr (!kPowers) product_wait<0>();
          free_stage();
        }
#pragma unroll
        for (int own = 0; own < kBatch; ++own) {
#pragma unroll
          for (int b = 0; b < kM; ++b) {
            if constexpr (kPowers)
              Powers::decode<kZeros>(words[first + own][b], scaled[b], less[b], mine[own][b]);
            else if constexpr (kScaleSums)
              decode_shifted<T, 4, kZeros>(words[first + own][b], numbers[b],
                                           reinterpret_cast<typename Pair<T>::type(&)[8]>(mine[own][b]));
            else
              decode_scaled<T, 4, kZeros>(words[first + own][b], numbers[b], mine[own][b]);
          }
        }
        product_fence();
#pragma unroll
        for (int own = 0; own < kBatch; ++own) {
          const uint64_t from_x = x + (r * kRunBlocks + first + own) / 2 * kRows * 8 + (first + own) % 2 * 4;
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
    last = own_empty + 8 * ring.stage;
    left -= step;
    if (left <= 0) left += s.per;
    ring.next(stages);
  }
  product_wait<0>();
  release_last();
  if constexpr (kPowers)
#pragma unroll
    for (int b = 0; b < kM; ++b) powers[b].take_back(sums[b]);
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
