// The product for few rows (few.cuh) with a matrix of any widths and groups.
//
// Each warp has a ring in shared memory. A slot takes a batch: some quads of a part that follow each other in a column
// block, up to 3 KB, with the scales and zeros of their groups. What is on its way need not be of one width: the ring
// is never empty where a part ends.
//
//      slot:    tiles ... | scales [quad, or tile of a fine one][16] | zeros, the same
//
// What a warp's batches are is worked out ahead, for 32 at a time, one by each lane, and written down in a list. So a
// turn, a batch brought and one multiplied, has few instructions but those of the product.
#pragma once
#include "cuda/codec/scaled.cuh"
#include "cuda/common/kept.cuh"
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

// Slots of a ring: one is multiplied, the others are on their way. Fewer where memory is short, or batches are few.
constexpr int kFewSlots = 3, kFewLeastSlots = 2;
// Batches that are asked for before x is: more, and x waits in the queue behind them.
constexpr int kFewEarly = 1;
constexpr int kFewMostBatch = 3072;  // bytes of tiles
constexpr int kFewList = 64;         // batches of a warp that are written down

// A batch as it is written down: packed, so that one instruction reads it. Quads, or tiles of fine ones, have a row of
// scales each; neighbours' rows are the same group's, or those of groups that follow each other.
struct __align__(16) FewBatch {
  uint32_t tiles;  // where they lie, in units of 64 bytes
  uint32_t group;  // of the first scales, counted over all column blocks
  uint32_t what;  // size of the tiles in such units: 8 bits | bits: 4 | fine: 1 | quads: 3 | row i is a new group's: 16
  uint32_t whence;  // pieces of 16 bytes of scales: 6 bits | the first quad's place in x: 13 | share() + 1: 13

  __device__ int size() const { return what & 0xff; }
  __device__ int bits() const { return what >> 8 & 15; }
  __device__ bool fine() const { return (what >> 12 & 1) != 0; }
  __device__ int quads() const { return what >> 13 & 7; }
  __device__ uint64_t group_of(int row) const { return group + __popc(what & 0x1ffffu << row & 0xffff0000u); }
  __device__ int pieces() const { return whence & 63; }
  __device__ int quad() const { return whence >> 6 & 0x1fff; }
  __device__ int share() const { return static_cast<int>(whence >> 19) - 1; }  // where sums are left after it; or -1
};

// A quad in shared memory.
template <int kBits, bool kFine, bool kZeros>
struct QuadInSlot {
  const uint8_t* tiles;
  const __half* scales;  // of the lane's first column
  const float* zeros;
  int lane;

  __device__ TileLane<kBits> tile(int i) const {
    TileLane<kBits> words;
    words.load(tiles + i * 64 * kBits, lane);
    return words;
  }
  __device__ float scale(int group, int v) const { return __half2float(scales[16 * group + 8 * v]); }
  __device__ float zero(int group, int v) const { return zeros[16 * group + 8 * v]; }

  __device__ __forceinline__ void next() {
    constexpr int kNumbers = (kFine ? 4 : 1) * kTileColumns;
    tiles += 256 * kBits;
    scales += kNumbers;
    if constexpr (kZeros) zeros += kNumbers;
  }
};

// a / b for a below 2^21, and what 1 / b is.
__device__ inline int small_quotient(int a, float one_by_b) {
  return static_cast<int>((static_cast<float>(a) + 0.5f) * one_by_b);
}

// A warp's batches, one part after another.
template <typename T, bool kZeros, int kSlots>
struct FewRing {
  const FewBlock<T>& b;
  const int slot_bytes;
  const uint8_t* const ring;
  FewBatch* const list;
  int turns;  // batches in all
  // Where the lane's pieces of 16 bytes would lie, of the first of all tiles and numbers.
  const uint8_t *const tiles, *const scales, *const zeros;

  __device__ explicit FewRing(const FewBlock<T>& block)
      : b(block),
        slot_bytes(kept(block.a.slot_bytes)),
        ring(block.shared + block.a.ring_at + block.warp * kSlots * slot_bytes),
        list(reinterpret_cast<FewBatch*>(block.shared + block.a.list_at) + block.warp * kFewList),
        tiles(kept(block.m.weight + block.lane * 16)),
        scales(kept(reinterpret_cast<const uint8_t*>(block.m.scales) + block.lane % 2 * 16)),
        zeros(kept(reinterpret_cast<const uint8_t*>(block.m.zeros) + block.lane % 4 * 16)) {
    plan(0);
  }

  // Has the batch of this turn copied to slot `to`, and closes a group of copies in any case.
  __device__ __forceinline__ void bring(int turn, int to) {
    if (turn > 0 && turn % 32 == 0) plan(turn);
    const FewBatch batch = list[turn % kFewList];
    const unsigned at = shared_address(ring) + to * slot_bytes + b.lane * 16;
    const uint8_t* from = kept(tiles + 64ull * batch.tiles);
#pragma unroll
    for (int i = 0; i < kFewMostBatch / 512; ++i)
      if (b.lane / 4 + 8 * i < batch.size()) copy_async<16>(at + 512 * i, from + 512 * i, true);
    if (b.lane < batch.pieces()) copy_async<16>(at + b.a.scales_at, scales + 32 * batch.group_of(b.lane / 2), true);
    if (kZeros && b.lane < 2 * batch.pieces())
      copy_async<16>(at + b.a.zeros_at, zeros + 64 * batch.group_of(b.lane / 4), true);
    commit_copies();
  }

  // `x`, `digits`: from the block's first quad on.
  __device__ __forceinline__ void multiply(const FewBatch& batch, const uint8_t* slot, const FewOperand& x,
                                           const FewDigits& digits, float (&total)[4]) const {
    with_bits(batch.bits(), [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      if (batch.fine()) {
        multiply_as<FewProduct<T, kBits, true, kZeros>, kBits, true>(batch, slot, x, total);
        return;
      }
      if constexpr (kBits <= 3) {
        using Product = FewDigitProduct<kBits, kZeros>;
        if (b.a.digits_at != 0) {
          float sums[2] = {total[0], total[1]};
          multiply_as<Product, kBits, false>(batch, slot, digits, sums);
          total[0] = sums[0], total[1] = sums[1];
          if (batch.share() >= 0) Product::finish(sums, total);
          return;
        }
      }
      multiply_as<FewProduct<T, kBits, false, kZeros>, kBits, false>(batch, slot, x, total);
    });
  }

 private:
  template <typename Product, int kBits, bool kFine, typename X, typename Total>
  __device__ __forceinline__ void multiply_as(const FewBatch& batch, const uint8_t* slot, X x, Total& total) const {
    QuadInSlot<kBits, kFine, kZeros> quad{slot, reinterpret_cast<const __half*>(slot + b.a.scales_at) + b.lane / 4,
                                          reinterpret_cast<const float*>(slot + b.a.zeros_at) + b.lane / 4, b.lane};
    x = x.after(batch.quad());
#pragma unroll 1
    for (int i = batch.quads(); i > 0; --i) {
      Product::add(quad, x, total, [] {});
      quad.next();
      x = x.after(1);
    }
  }

  // Writes down the batches of turns `first` to first + 31, empty ones after the last. A warp has a sixteenth of each
  // part, to a quad; which warps have one more goes round from part to part.
  __device__ void plan(int first) {
    int turn = first + b.lane, part = -1, stretch = 0, column = 0, quad = 0, end = 0;
    turns = 0;
#pragma unroll 1
    for (int i = 0; i < b.parts; ++i) {
      const FewPart& p = b.part(i);
      const int quads = p.quads(), all = b.columns * quads, more = all % kFewWarps;
      const int its_stretch = (b.warp - b.columns * p.before) & (kFewWarps - 1);
      const int from = its_stretch * (all / kFewWarps) + min(its_stretch, more);
      const int count = all / kFewWarps + (its_stretch < more ? 1 : 0);
      // Batches: of the first column block, of each further one, and in all.
      const int its_column = small_quotient(from, p.per_quad), skipped = from - its_column * quads;
      const int head = min(quads - skipped, count), rest = count - head, full = small_quotient(rest, p.per_quad);
      const int up = (1 << p.batch) - 1, in_head = (head + up) >> p.batch, in_full = p.batches();
      const int in_part = in_head + full * in_full + ((rest - full * quads + up) >> p.batch);
      if (turn >= 0 && turn < in_part) {
        const int further = turn < in_head ? -1 : small_quotient(turn - in_head, p.per_batch);
        part = i;
        stretch = its_stretch;
        column = its_column + 1 + further;
        quad = (turn - (turn < in_head ? 0 : in_head + further * in_full) << p.batch) + (turn < in_head ? skipped : 0);
        end = turn < in_head ? skipped + head : min(quads, rest - further * quads);
      }
      turn -= in_part;
      turns += in_part;
    }
    list[(first + b.lane) % kFewList] = part < 0 ? FewBatch{} : describe(part, stretch, column, quad, end);
    __syncwarp();
  }

  // The batch that begins with this quad of a part's column block, of which the warp has those up to `end`.
  __device__ __forceinline__ FewBatch describe(int part, int stretch, int column, int quad, int end) const {
    const FewPart& p = b.part(part);
    const int quads = min(1 << p.batch, end - quad), blocks = min(4 * quads, p.count - 4 * quad);
    const int share = b.slot_of(part, column, stretch), nb = b.column_first + column;
    if (quad == 0) b.begins(part, column, share);
    const int rows = p.fine ? 4 * quads : quads, step = p.fine ? 1 : 4;
    const int at = p.at + 4 * quad, first = p.group_of(at);
    uint32_t changes = (1u << rows) - 2;  // a group each
    if (p.inverse != 1u << (p.fine ? 31 : 29) || (p.fine && rows > blocks)) {
      changes = 0;
#pragma unroll 1
      for (int i = 1, before = first; i < rows; ++i) {
        const int group = p.group_of(at + min(i * step, blocks - 1));  // of what is not there: the last
        changes |= (group - before) << i;
        before = group;
      }
    }
    FewBatch batch;
    batch.tiles = nb * static_cast<uint32_t>(b.m.column_bytes >> 6) + p.offset + 4 * quad * p.bits;
    batch.group = nb * static_cast<uint32_t>(b.m.G) + first;
    batch.what = p.bits * blocks | p.bits << 8 | (p.fine ? 1 : 0) << 12 | quads << 13 | changes << 16;
    batch.whence = 2 * rows | (p.before + quad) << 6 | (quad + quads == end ? share + 1 : 0) << 19;
    return batch;
  }
};

template <typename T, bool kZeros, int kSlots>
__device__ __forceinline__ void few_multiply_ring(const FewBlock<T>& b) {
  constexpr int kEarly = kFewEarly < kSlots ? kFewEarly : kSlots - 1;
  FewRing<T, kZeros, kSlots> ring(b);
#pragma unroll
  for (int i = 0; i < kEarly; ++i) ring.bring(i, i);
  b.ask_for_x();
#pragma unroll
  for (int i = kEarly; i < kSlots - 1; ++i) ring.bring(i, i);
  b.template take_x<kSlots - 1 - kEarly, true, true>();

  FewOperand x = b.operand(0);
  x.x = kept(static_cast<int>(x.x));
  x.sums = b.shared + kept(static_cast<int>(x.sums - b.shared));
  x.sums_step = kept(x.sums_step);
  FewDigits digits = b.digits(0);
  digits.planes = kept(static_cast<int>(digits.planes));
  digits.numbers = kept(static_cast<int>(digits.numbers));
  float total[4] = {};
  int slot = 0, freed = kSlots - 1;
#pragma unroll 1
  for (int turn = 0; turn < ring.turns; ++turn) {
    wait_for_copies<kSlots - 2>();
    __syncwarp();
    ring.bring(turn + kSlots - 1, freed);
    const FewBatch batch = ring.list[turn % kFewList];
    ring.multiply(batch, ring.ring + slot * ring.slot_bytes, x, digits, total);
    if (batch.share() >= 0) b.leave(batch.share(), total);
    freed = slot;
    if (++slot == kSlots) slot = 0;
  }
}

template <typename T, bool kZeros, int kSlots>
__global__ void __launch_bounds__(kFewThreads, 1) few_ring_kernel(const __grid_constant__ FewArgs a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  const FewBlock<T> block(a, shared);
  few_multiply_ring<T, kZeros, kSlots>(block);
  block.add_up();
#endif
}

// Their unit is few_ring.cu.
template <typename T>
FewKernel few_ring_kernel_of(bool zeros, int slots);

}  // namespace nybble::cuda
