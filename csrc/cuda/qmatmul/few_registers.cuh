// The product for few rows (few.cuh) with a matrix of one width and a group to four tiles or more.
//
// A warp reads tiles straight into registers, two batches of quads in turn. All its loads count on one barrier: whoever
// waits for one waits for all that were begun. So the next batch is begun when the first tile of one has arrived, which
// is when all of it has.
//
//      batch 0   |arrives| multiply ...            | next but one on its way
//      batch 1   | on its way                      |arrives| multiply ...
#pragma once
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

// About 2 KB: of 16 warps, that keeps the memory busy. More takes longer, as does each instruction of the loop that is
// met for the first time.
template <int kBits, bool kDigits>
constexpr int kFewBatch = kBits == 2              ? 4
                          : kBits == 3 && kDigits ? 3
                                                  : 2;

// A lane's words of a tile, from global memory that no kernel writes, past the first cache, as they lie: nothing waits
// for them before spread(). `mine` points to the first; those of a second part are `second` bytes further.
template <int kBits>
__device__ __forceinline__ void fetch_words(TileLane<kBits>& t, const uint8_t* mine, int second) {
  auto& word = t.word;
  if constexpr (TileLane<kBits>::kFirst == 4)
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "l"(mine));
  else if constexpr (TileLane<kBits>::kFirst == 2)
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(mine));
  else
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(word[0]) : "l"(mine));
  if constexpr (TileLane<kBits>::kSecondBytes == 4 || TileLane<kBits>::kShared)
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];"
                 : "=r"(word[TileLane<kBits>::kFirst])
                 : "l"(mine + second));
  if constexpr (TileLane<kBits>::kSecondBytes == 2 && !TileLane<kBits>::kShared) {
    uint16_t half;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(half) : "l"(mine + second));
    word[TileLane<kBits>::kFirst] = half;
  }
}

// A quad in registers.
template <int kBits, bool kZeros>
struct QuadInRegisters {
  static constexpr int kBytes = 4 * 64 * kBits;
  TileLane<kBits> raw[4];
  uint16_t scales[2];
  float zeros[kZeros ? 2 : 1];

  // `from` points to the lane's first words. Only the first `tiles`: the rest are of x = 0.
  __device__ __forceinline__ void fetch_tiles(const uint8_t* from, int lane, int tiles = 4) {
    using Tile = TileLane<kBits>;
    const int mine = Tile::kShared ? lane / 2 * 4 : lane * Tile::kSecondBytes;
    const int second = 128 * Tile::kFirst + mine - lane * 4 * Tile::kFirst;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < tiles) fetch_words(raw[i], from + i * 64 * kBits, second);
    }
  }
  // Of column lane / 4, and 8 further.
  __device__ __forceinline__ void fetch_numbers(const uint16_t* scale, const float* zero) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(scales[v]) : "l"(scale + 8 * v));
      if constexpr (kZeros) asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(zeros[v]) : "l"(zero + 8 * v));
    }
  }

  __device__ TileLane<kBits> tile(int i) const {
    TileLane<kBits> words = raw[i];
    words.spread(threadIdx.x);
    return words;
  }
  __device__ float scale(int, int v) const { return __half2float(__ushort_as_half(scales[v])); }
  __device__ float zero(int, int v) const { return zeros[v]; }
};

// Where a warp's quads lie, and how it fetches them: batches that end with their column block, and what does not fill a
// quad by itself.
template <typename T, int kBits, bool kZeros, int kBatch>
struct FewSource {
  using Q = QuadInRegisters<kBits, kZeros>;
  const FewBlock<T>& b;
  const FewPart& p;
  int left, column, next, run;  // quads of the stretch; quad of the column block, and how many whole ones follow it
  const uint8_t* tile;
  uint32_t numbers;  // before the column block's scales, and zeros, those of the lane's first column

  __device__ FewSource(const FewBlock<T>& block, const FewPart& part, int from, int to)
      : b(block), p(part), left(max(0, to - from)), column(from / part.quads()), next(from - column * part.quads()) {
    begin_column();
  }

  // Answers how many quads it began.
  __device__ __forceinline__ int fetch(Q* quads) {
    if (run < kBatch) return fetch_some(quads);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) quads[i].fetch_tiles(tile + i * Q::kBytes, b.lane);
    const bool steady = p.inverse == 1u << 29;  // a group to each
    const uint32_t first = numbers + p.group_of(p.at + 4 * next) * kTileColumns;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const uint32_t at =
          steady ? first + i * kTileColumns : numbers + p.group_of(p.at + 4 * (next + i)) * kTileColumns;
      quads[i].fetch_numbers(b.m.scales + at, b.m.zeros + at);
    }
    return advance(kBatch);
  }

 private:
  __device__ int advance(int quads) {
    tile += quads * Q::kBytes;
    next += quads;
    run -= quads;
    left -= quads;
    return quads;
  }

  __device__ void begin_column() {
    const int64_t nb = b.column_first + column;
    tile =
        b.m.weight + nb * b.m.column_bytes + 64ll * p.offset + next * Q::kBytes + b.lane * 4 * TileLane<kBits>::kFirst;
    numbers = static_cast<uint32_t>(nb) * b.m.G * kTileColumns + b.lane / 4;
    run = min(p.count / 4 - next, left);
  }

  // The end of a column block, or the beginning of the next.
  __device__ __forceinline__ int fetch_some(Q* quads) {
    if (left > 0 && next == p.quads()) {
      ++column;
      next = 0;
      begin_column();
    }
    const int count = min(left, run > 0 ? min(run, kBatch) : 1), tiles = run > 0 ? 4 : p.count % 4;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      quads[i] = {};
      if (i >= count) continue;
      quads[i].fetch_tiles(tile + i * Q::kBytes, b.lane, tiles);
      const uint32_t at = numbers + p.group_of(p.at + 4 * (next + i)) * kTileColumns;
      quads[i].fetch_numbers(b.m.scales + at, b.m.zeros + at);
    }
    return advance(count);
  }
};

// kDigits: of up to kFewDigitRows rows, in whole numbers.
template <typename T, int kBits, bool kZeros, bool kDigits>
__device__ __forceinline__ void few_multiply(const FewBlock<T>& b) {
  constexpr int kBatch = kFewBatch<kBits, kDigits>;
  using Product = std::conditional_t<kDigits, FewDigitProduct<kBits, kZeros>, FewProduct<T, kBits, false, kZeros>>;
  // A copy is read faster; 8 bits with zeros have no registers for it.
  const std::conditional_t<kBits == 8 && kZeros, const FewPart&, FewPart> part = b.part(0);
  const int each = part.quads(), all = b.columns * each;
  const int from = all * b.warp / kFewWarps, to = all * (b.warp + 1) / kFewWarps;
  FewSource<T, kBits, kZeros, kBatch> source(b, part, from, to);
  QuadInRegisters<kBits, kZeros> quads[2][kBatch];
  int counts[2] = {source.fetch(quads[0]), 0};
  b.ask_for_x();
  b.template take_x<0, !kDigits, kDigits>();

  const auto operand = [&](int quad) {
    if constexpr (kDigits)
      return b.digits(quad);
    else
      return b.operand(quad);
  };
  int column = from / each, at = from - column * each;  // quad of the column block
  auto x = operand(at);
  const auto begin = [&] {
    if (b.lane == 0) b.begins(0, column, b.slot_of(0, column, b.warp));
  };
  if (at == 0 && counts[0] > 0) begin();
  float total[kDigits ? 2 : 4] = {};
#pragma unroll 1
  while (counts[0] > 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i > 0 && i >= counts[half]) continue;
        Product::add(quads[half][i], x.after(i), total, [&] {
          if (i == 0) counts[1 - half] = source.fetch(quads[1 - half]);
        });
      }
      at += counts[half];
      x = x.after(counts[half]);
      if (at == each || counts[1 - half] == 0) {
        const int slot = b.slot_of(0, column, b.warp);
        if constexpr (kDigits) {
          float sums[4];
          Product::finish(total, sums);
          b.leave(slot, sums);
          total[0] = total[1] = 0;
        } else {
          b.leave(slot, total);
        }
        if (counts[1 - half] == 0) return;
        ++column;
        begin();
        at = 0;
        x = operand(0);
      }
    }
  }
}

template <typename T, int kBits, bool kZeros, bool kDigits>
__global__ void __launch_bounds__(kFewThreads, 1) few_kernel(const __grid_constant__ FewArgs a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  const FewBlock<T> block(a, shared);
  few_multiply<T, kBits, kZeros, kDigits>(block);
  block.add_up();
#endif
}

// The kernel for a width; each dtype is a unit of its own, few_*.cu. With digits: of few_takes_digits().
template <typename T>
FewKernel few_kernel_of(int bits, bool zeros, bool digits);

}  // namespace nybble::cuda
