// The product for few rows (few.cuh) with a matrix of any widths and groups.
//
// A warp copies tiles, and the scales and zeros of their groups, into a ring of its own in shared memory, a quad to a
// slot, and multiplies them from there. What is on its way need not be of one width: the ring is never empty where a
// part ends.
#pragma once
#include "cuda/codec/scaled.cuh"
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

// Slots of a ring: one is multiplied, the others are on their way. Fewer where memory is short.
constexpr int kFewSlots = 4, kFewLeastSlots = 2;
// Quads that are asked for before x is: more, and x waits in the queue behind them.
constexpr int kFewEarly = 2;

// Bytes of what a slot has before its tiles: scales [group][16], then zeros [group][16]. A fine quad has four groups.
__host__ __device__ constexpr int few_scale_bytes(bool fine) { return fine ? 128 : 32; }
__host__ __device__ constexpr int few_number_bytes(bool zeros) { return few_scale_bytes(true) * (zeros ? 3 : 1); }

// A quad in shared memory.
template <int kBits, bool kFine, bool kZeros>
struct QuadInSlot {
  const uint8_t* slot;
  int lane;

  __device__ TileLane<kBits> tile(int i) const {
    TileLane<kBits> words;
    words.load(slot + few_number_bytes(kZeros) + i * 64 * kBits, lane);
    return words;
  }
  __device__ float scale(int group, int v) const {
    return __half2float(reinterpret_cast<const __half*>(slot)[16 * group + 8 * v + lane / 4]);
  }
  __device__ float zero(int group, int v) const {
    return reinterpret_cast<const float*>(slot + few_scale_bytes(kFine))[16 * group + 8 * v + lane / 4];
  }
};

// A warp's quads, one part after another, on their way into its ring.
template <typename T, bool kZeros>
struct FewRingSource {
  const FewBlock<T>& b;
  typename FewBlock<T>::Walk walk;
  int left, column, next, run;  // quads of the part's stretch; quad of the column block, and how many follow it at once
  int tiles, pieces;            // of the next quads; a piece is 16 bytes
  const uint8_t* tile;
  // The lane copies a piece of the numbers: of the column block's first group, bytes to the next group's, which tile's.
  const uint8_t* numbers;
  int numbers_step, numbers_of;
  bool has_numbers;

  __device__ explicit FewRingSource(const FewBlock<T>& block) : b(block), walk(block), left(0), next(0), run(0) {}

  // Brings the next quad, if there is one, and closes a group of copies in any case.
  __device__ __forceinline__ void fetch(unsigned slot) {
    if (run > 0 || turn()) {
      const FewPart& p = walk.part;
      const unsigned to = slot + b.lane * 16;
      if (has_numbers) {
        const int group = p.group_of(p.at + 4 * next + numbers_of);
        copy_async<16>(to, numbers + static_cast<int64_t>(group) * numbers_step, numbers_of < tiles);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (b.lane + 32 * i < pieces) copy_async<16>(to + few_number_bytes(kZeros) + 512 * i, tile + 512 * i, true);
      tile += 256 * p.bits;
      ++next;
      --run;
    }
    commit_copies();
  }

 private:
  // What comes after a run: false if nothing does.
  __device__ bool turn() {
    const FewPart& p = walk.part;
    while (left == 0) {
      if (!walk.next()) return false;
      const auto stretch = b.stretch_of(walk);
      left = max(0, stretch.to - stretch.from);
      column = stretch.from / p.quads();
      next = stretch.from - column * p.quads();
      begin_column();
    }
    if (next == p.quads()) {
      ++column;
      next = 0;
      begin_column();
    }
    const int whole = p.count / 4 - next;
    tiles = whole > 0 ? 4 : p.count % 4;
    pieces = 4 * p.bits * tiles;
    run = whole > 0 ? min(whole, left) : 1;
    left -= run;
    return true;
  }

  __device__ void begin_column() {
    const FewPart& p = walk.part;
    const int64_t nb = b.column_first + column;
    tile = b.m.weight + nb * b.m.column_bytes + 64ll * (p.offset + 4 * next * p.bits) + b.lane * 16;
    const int scales = few_scale_bytes(p.fine) / 16, piece = b.lane - scales;
    has_numbers = b.lane < scales * (kZeros ? 3 : 1);
    if (piece < 0) {
      numbers = reinterpret_cast<const uint8_t*>(b.m.scales) + nb * b.m.G * 32 + b.lane % 2 * 16;
      numbers_of = b.lane / 2;
    } else {
      numbers = reinterpret_cast<const uint8_t*>(b.m.zeros) + nb * b.m.G * 64 + piece % 4 * 16;
      numbers_of = piece / 4;
    }
    numbers_step = piece < 0 ? 32 : 64;
  }
};

template <typename T, bool kZeros>
__device__ __forceinline__ void few_multiply_slot(const uint8_t* slot, const FewPart& p, int lane, const FewOperand& x,
                                                  float (&total)[4]) {
  with_bits(p.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    if (p.fine)
      FewProduct<T, kBits, true, kZeros>::add(QuadInSlot<kBits, true, kZeros>{slot, lane}, x, total, [] {});
    else
      FewProduct<T, kBits, false, kZeros>::add(QuadInSlot<kBits, false, kZeros>{slot, lane}, x, total, [] {});
  });
}

template <typename T, bool kZeros, int kSlots>
__device__ __forceinline__ void few_multiply_ring(const FewBlock<T>& b) {
  constexpr int kEarly = kFewEarly < kSlots ? kFewEarly : kSlots - 1;
  FewRingSource<T, kZeros> source(b);
  const int slot_bytes = b.a.slot_bytes;
  const uint8_t* const ring = b.shared + b.a.ring_at + b.warp * kSlots * slot_bytes;
  const unsigned ring_address = shared_address(ring);
  for (int i = 0; i < kEarly; ++i) source.fetch(ring_address + i * slot_bytes);
  b.ask_for_x();
  for (int i = kEarly; i < kSlots - 1; ++i) source.fetch(ring_address + i * slot_bytes);
  b.template take_x<kSlots - 1 - kEarly>();

  int slot = 0, freed = kSlots - 1;
  for (typename FewBlock<T>::Walk walk(b); walk.next();) {
    const auto stretch = b.stretch_of(walk);
    const int each = walk.part.quads(), all = stretch.to - stretch.from;
    if (all <= 0) continue;
    int column = stretch.from / each, in_column = min((column + 1) * each - stretch.from, all), rest = all - in_column;
    FewOperand x = b.operand(walk.before + stretch.from - column * each);
    if (stretch.from == column * each) b.begins(walk.number, column);
    float total[4] = {};
#pragma unroll 1
    while (true) {
      wait_for_copies<kSlots - 2>();
      __syncwarp();
      source.fetch(ring_address + freed * slot_bytes);
      few_multiply_slot<T, kZeros>(ring + slot * slot_bytes, walk.part, b.lane, x, total);
      freed = slot;
      if (++slot == kSlots) slot = 0;
      x = x.after(1);
      if (--in_column > 0) continue;
      b.leave(walk.number, column, total);
      if (rest == 0) break;
      b.begins(walk.number, ++column);
      in_column = min(each, rest);
      rest -= in_column;
      x = b.operand(walk.before);
    }
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
