// The step top_p_stream. Candidates enter a heap one after another; while its mass is over p the least probable leaves.
// They are sorted first: then the heap is a set of bits, one a rank, and its least probable candidate the highest bit.
#pragma once
#include "cuda/sample/steps.cuh"

namespace nybble::cuda {

// One warp.
class StreamHeap {
 public:
  // sorted: the candidates by rank; bits: one a rank, all 0; most: the mass it may have.
  __device__ StreamHeap(const u64* sorted, unsigned* bits, u64 most) : sorted_(sorted), bits_(bits), most_(most) {}

  // The next candidates of the stream, of which each waiting lane has one.
  __device__ void enter(unsigned rank, bool waits) {
    const auto add = Plus{};
    const unsigned lane = threadIdx.x % 32;
    unsigned left = __ballot_sync(kFullWarp, waits);
    const u64 mine = waits ? mass_of(rank) : 0, all = warp_join(mine, add);
    if (sum_ + all <= most_) {
      if (waits) atomicOr(&bits_[rank / 32], 1u << rank % 32);
      sum_ += all;
      count_ += __popc(left);
      end_ = max(end_, warp_join(waits ? rank + 1 : 0, Most{}));
      left = 0;
    }
    while (left != 0) {
      // There is no room for some, and they are the least probable: they would leave at once.
      const bool stays = sum_ + mine <= most_ || rank + 1 < end_ || count_ == 0;
      const unsigned some = left & __ballot_sync(kFullWarp, stays);
      if (some == 0) break;
      const int first = __ffs(some) - 1;
      left &= ~0u << first << 1;
      const unsigned one = __shfl_sync(kFullWarp, rank, first);
      if (lane == 0) atomicOr(&bits_[one / 32], 1u << one % 32);
      sum_ += __shfl_sync(kFullWarp, mine, first);
      end_ = max(end_, one + 1);
      ++count_;
      while (sum_ > most_ && count_ > 1) leave();
    }
  }

 private:
  __device__ u64 mass_of(unsigned rank) const { return mass(probability(sorted_[rank])); }

  // The least probable.
  __device__ void leave() {
    const unsigned lane = threadIdx.x % 32, last = end_ - 1;
    sum_ -= mass_of(last);
    --count_;
    __syncwarp();
    if (lane == 0) atomicAnd(&bits_[last / 32], ~(1u << last % 32));
    __syncwarp();
    for (unsigned word = last / 32;; word -= 32) {  // there is one
      const unsigned here = lane <= word ? bits_[word - lane] : 0;
      if (const unsigned some = __ballot_sync(kFullWarp, here != 0)) {
        const unsigned from = __ffs(some) - 1;
        end_ = (word - from) * 32 + 32 - __clz(__shfl_sync(kFullWarp, here, from));
        return;
      }
    }
  }

  const u64* sorted_;
  unsigned* bits_;
  u64 most_, sum_ = 0;
  unsigned end_ = 0;  // behind the rank of the least probable
  unsigned count_ = 0;
};

__device__ inline void top_p_stream(Candidates& c, float p) {
  if (p >= 1.0f) return;
  constexpr float kLeast = 1e-6f;
  const auto enters = [&](unsigned i) { return c.p[i] >= kLeast; };
  const unsigned count = c.list_from(kLeast);
  if (count == 0) return;
  const u64* sorted = c.sort_keys(count, 0);
  // In the shared memory of block 0, if it is large enough.
  constexpr unsigned kShared = sizeof(c.shared.at) * 8;
  unsigned* bits = in_block(c.shared.at[0], 0);
  if (count >= kShared) bits = reinterpret_cast<unsigned*>(sorted == c.keys ? c.aux : c.keys);
  auto* ranks = reinterpret_cast<unsigned*>(c.of_id);
  for (unsigned i = c.team.thread(); i < count / 32 + 1; i += c.team.threads()) bits[i] = 0;
  c.team.select(0, c.n, enters, [&](unsigned at, unsigned i) {
    const u64 key = c.packed(i);
    unsigned low = 0, high = count - 1;  // sorted[] descends
    while (low < high) {
      const unsigned middle = (low + high) / 2;
      if (sorted[middle] > key)
        low = middle + 1;
      else
        high = middle;
    }
    ranks[at] = low;
  });
  c.team.sync();
  if (c.team.thread() < 32) {
    StreamHeap heap(sorted, bits, static_cast<u64>(ldexp(static_cast<double>(p), kMassBits)));
    for (unsigned at = 0; at < count; at += 32) {
      const bool valid = at + threadIdx.x < count;
      heap.enter(valid ? ranks[at + threadIdx.x] : 0, valid);
    }
  }
  c.team.sync();
  c.n = c.team.select(
      0, count, [&](unsigned rank) { return bits[rank / 32] >> rank % 32 & 1; },
      [&](unsigned at, unsigned rank) {
        c.p[at] = probability(sorted[rank]);
        c.id[at] = static_cast<unsigned>(sorted[rank]);
      });
  c.by_id = false;
  c.team.sync();
  c.renormalise();
}

}  // namespace nybble::cuda
