// The blocks that work on one row: reductions, scans, ordered selection and a small sort. Sums of probabilities are
// whole numbers (u64 fixed point), so that no order of adding, no number of blocks and no run changes them.
#pragma once
#include <cstring>

#include "cuda/common/cluster.cuh"

namespace nybble::cuda {

using u64 = unsigned long long;

constexpr unsigned kTeamThreads = 1024;  // of one block
constexpr unsigned kTeamWarps = kTeamThreads / 32;
// At most, and a power of two: the largest cluster that every device with clusters takes.
constexpr unsigned kTeamBlocks = 8;
constexpr unsigned kFullWarp = 0xffffffffu;

// Shared memory by its own addresses, kept in a register: the compiler would work them out at every use.
__device__ inline unsigned shared_address(const void* p) {
  auto address = static_cast<unsigned>(__cvta_generic_to_shared(p));
  asm volatile("" : "+r"(address));
  return address;
}
__device__ inline unsigned shared_add(unsigned address, unsigned v) {
#ifdef __HIP__
  return nybble::hip::shared_add(address, v);
#else
  unsigned old;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(address), "r"(v) : "memory");
  return old;
#endif
}

struct Plus {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Least {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return min(a, b);
  }
};
struct Most {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return max(a, b);
  }
};

// In shared memory, where clang takes no initial values.
template <typename T>
union Shelved {
  T v;
  __device__ Shelved() {}
};

enum class Shuffle { butterfly, up };

// A shuffle of anything made of 4-byte words.
template <Shuffle kind, typename T>
__device__ T shuffle(T v, unsigned distance) {
  constexpr unsigned kWords = sizeof(T) / 4;
  static_assert(sizeof(T) == 4 * kWords);
  unsigned words[kWords];
  memcpy(words, &v, sizeof(T));
#pragma unroll
  for (unsigned w = 0; w < kWords; ++w)
    words[w] = kind == Shuffle::up ? __shfl_up_sync(kFullWarp, words[w], distance)
                                   : __shfl_xor_sync(kFullWarp, words[w], distance);
  memcpy(&v, words, sizeof(T));
  return v;
}

template <typename T, typename Join>
__device__ T warp_join(T v, Join join) {
#pragma unroll
  for (unsigned distance = 16; distance > 0; distance /= 2) v = join(v, shuffle<Shuffle::butterfly>(v, distance));
  return v;
}

template <typename T, typename Join>
__device__ T warp_inclusive(T v, Join join) {
#pragma unroll
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    const T other = shuffle<Shuffle::up>(v, distance);
    if (threadIdx.x % 32 >= distance) v = join(other, v);
  }
  return v;
}

// Every member is called by all threads of all blocks.
class Team {
 public:
  unsigned rank = cluster_rank(), size = cluster_blocks();

  __device__ unsigned thread() const { return rank * kTeamThreads + threadIdx.x; }
  __device__ unsigned threads() const { return size * kTeamThreads; }

  // Block 0 goes on without the others, until all meet again at a cluster_sync().
  __device__ void alone() { size = 1; }
  __device__ void together() {
    size = cluster_blocks();
    turn_ = 0;
  }

  __device__ void sync() const {
    if (size == 1)
      __syncthreads();
    else
      cluster_sync();
  }

  // Everybody gets the answer, joined in the same order in every run.
  template <typename T, typename Join>
  __noinline__ __device__ T reduce(T v, Join join) {
    __shared__ Shelved<T> parts[2][kTeamWarps];  // in turn: nobody is two turns ahead
    __shared__ Shelved<T> whole[2], answer[2];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    turn_ ^= 1;
    v = warp_join(v, join);
    if (lane == 0) parts[turn_][warp].v = v;
    __syncthreads();
    if (warp == 0) {
      v = warp_join(parts[turn_][lane].v, join);
      if (lane == 0) whole[turn_].v = v;
    }
    sync();
    if (size == 1) return whole[turn_].v;
    if (warp == 0) {
      v = *in_block(&whole[turn_].v, lane % size);
      for (unsigned distance = size / 2; distance > 0; distance /= 2)
        v = join(v, shuffle<Shuffle::butterfly>(v, distance));
      if (lane == 0) answer[turn_].v = v;
    }
    __syncthreads();
    return answer[turn_].v;
  }

  // Calls emit(rank, i) for the i in [begin, end) that are good(i), ranked in order of i; how many there are.
  template <typename Good, typename Emit>
  __device__ unsigned select(unsigned begin, unsigned end, Good good, Emit emit) {
    const Tiles mine = tiles(end - begin);
    const unsigned lane = threadIdx.x % 32;
    unsigned count = 0, total;
#pragma unroll 4
    for (unsigned tile = mine.first; tile < mine.last; ++tile) {
      const unsigned i = begin + tile * 32 + lane;
      count += i < end && good(i);
    }
    unsigned at = before_warp(count, total);
#pragma unroll 4
    for (unsigned tile = mine.first; tile < mine.last; ++tile) {
      const unsigned i = begin + tile * 32 + lane;
      const bool is_good = i < end && good(i);
      const unsigned which = __ballot_sync(kFullWarp, is_good);
      if (is_good) emit(at + __popc(which & ((1u << lane) - 1)), i);
      at += __popc(which);
    }
    return total;
  }

  // The first i in [0, n) where value(0) + ... + value(i), whole numbers, is at least `goal`, which is at least 1; n if
  // there is none.
  template <typename Value>
  __device__ unsigned first_reaching(unsigned n, Value value, u64 goal) {
    __shared__ unsigned found[2];
    const Tiles mine = tiles(n);
    const unsigned lane = threadIdx.x % 32, turn = turn_;
    if (threadIdx.x == 0) found[turn] = n;
    u64 sum = 0, total;
#pragma unroll 4
    for (unsigned tile = mine.first; tile < mine.last; ++tile) {
      const unsigned i = tile * 32 + lane;
      if (i < n) sum += value(i);
    }
    u64 before = before_warp(sum, total);
    sum = warp_join(sum, Plus{});
    if (before < goal && goal <= before + sum) {
      for (unsigned tile = mine.first; tile < mine.last; ++tile) {
        const unsigned i = tile * 32 + lane;
        const u64 upto = before + warp_inclusive(i < n ? u64{value(i)} : u64{0}, Plus{});
        if (const unsigned reached = __ballot_sync(kFullWarp, upto >= goal)) {
          if (lane == 0) *in_block(&found[turn], 0) = tile * 32 + __ffs(reached) - 1;
          break;
        }
        before = __shfl_sync(kFullWarp, upto, 31);
      }
    }
    sync();
    return *in_block(&found[turn], 0);
  }

 private:
  struct Tiles {  // of 32 numbers
    unsigned first, last;
  };

  // A warp's share, one piece.
  __device__ Tiles tiles(unsigned n) const {
    const unsigned all = n / 32 + (n % 32 > 0), warps = size * kTeamWarps, each = (all + warps - 1) / warps;
    const unsigned first = min((rank * kTeamWarps + threadIdx.x / 32) * each, all);
    return {first, min(first + each, all)};
  }

  // The sum of `v` over all threads of the warps before this one, and of all warps.
  template <typename T>
  __noinline__ __device__ T before_warp(T v, T& total) {
    __shared__ T sums[2][kTeamWarps], whole[2], all[2];
    turn_ ^= 1;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    v = warp_join(v, Plus{});
    if (lane == 0) sums[turn_][warp] = v;
    __syncthreads();
    T before = 0;
    if (warp == 0) {
      v = sums[turn_][lane];
      before = warp_inclusive(v, Plus{});
      if (lane == 31) whole[turn_] = before;
      before -= v;
    }
    sync();
    if (warp == 0) {
      v = lane < size ? *in_block(&whole[turn_], lane) : T{0};
      sums[turn_][lane] = before + warp_join(lane < rank ? v : T{0}, Plus{});
      total = warp_join(v, Plus{});
      if (lane == 0) all[turn_] = total;
    }
    __syncthreads();
    total = all[turn_];
    return sums[turn_][warp];
  }

  unsigned turn_ = 0;
};

// As many blocks a row as the device has multiprocessors for, each with enough to do.
inline unsigned blocks_of_row(int64_t B, int64_t V) {
  constexpr int64_t kLogitsOfBlock = 2048;
  unsigned blocks = 1;
  if (gpu().sm >= 90)
    while (blocks < kTeamBlocks && 2 * blocks * B <= gpu().processors && V / (2 * blocks) >= kLogitsOfBlock)
      blocks *= 2;
  return blocks;
}

}  // namespace nybble::cuda
