// Count and mass of 1024 bins of candidates, bin 0 the most probable ones, and the bin in which a running sum reaches a
// goal: where a prefix of the sorted candidates ends, without sorting them. Each block fills its own, block 0 joins
// them.
#pragma once
#include <cstddef>

#include "cuda/sample/team.cuh"

namespace nybble::cuda {

constexpr int kBinBits = 10;
constexpr unsigned kBins = kTeamThreads;
static_assert(kBins == 1 << kBinBits);
constexpr unsigned kNone = 0xffffffffu;
constexpr u64 kNoMass = u64{1} << 62;  // more than there is

struct Sum {
  u64 mass;
  unsigned count;
  __device__ Sum operator+(const Sum& other) const { return {mass + other.mass, count + other.count}; }
  __device__ Sum operator-(const Sum& other) const { return {mass - other.mass, count - other.count}; }
};

// The place where so much mass, or so many candidates, are reached; both at least 1.
struct Goal {
  u64 mass;
  unsigned count;
  __device__ bool reached(const Sum& s) const { return s.mass >= mass || s.count >= count; }
};

struct Bin {
  unsigned number;  // kNone: the goal is not reached
  Sum before;       // all in bins before it
};

// In shared memory. What few warps can do few warps do: an instruction that all 32 execute takes eight cycles.
struct Bins {
  unsigned count[kBins], low[kBins], high[kBins];  // mass = high 2^32 + low
  uint4 near[3][kBins / 4];                        // what sum_up() fetched from other blocks
  Sum of_warp[kBins / 4 / 32];
  Goal goal;  // of find(), in block 0
  Bin found;

  __device__ void clear() {
    count[threadIdx.x] = low[threadIdx.x] = high[threadIdx.x] = 0;
    __syncthreads();
  }

  // Adds one candidate to a bin: the block's own bins, at this address.
  __device__ static void add(unsigned address, unsigned bin, u64 mass, bool counts) {
    const unsigned at = address + 4 * bin;
    const auto part = static_cast<unsigned>(mass);
    const unsigned old = shared_add(at + offsetof(Bins, low), part);
    const unsigned rest = static_cast<unsigned>(mass >> 32) + (old > ~part);
    if (rest > 0) shared_add(at + offsetof(Bins, high), rest);
    if (counts) shared_add(at + offsetof(Bins, count), 1);
  }

  __device__ Sum at(unsigned b) const { return {(u64{high[b]} << 32) + low[b], count[b]}; }

  // Joins all blocks' bins in block 0, and makes each there the sum of all up to it.
  __noinline__ __device__ void sum_up(const Team& team) {
    const unsigned t = threadIdx.x, lane = t % 32, warp = t / 32;
    const bool mine = t < kBins / 4;  // this thread has bins 4 t to 4 t + 3
    team.sync();
    if (team.size > 1) {
      // Each block joins a share of the bins, four at a time: few and wide accesses to the others' memory.
      const unsigned share = kBins >> (__ffs(team.size) - 1), fours = share / 4;
      if (mine) {
        const unsigned r = t >> (__ffs(fours) - 1), four = team.rank * fours + (t & (fours - 1));
        near[0][t] = in_block(reinterpret_cast<uint4*>(count), r)[four];
        near[1][t] = in_block(reinterpret_cast<uint4*>(low), r)[four];
        near[2][t] = in_block(reinterpret_cast<uint4*>(high), r)[four];
      }
      __syncthreads();
      if (t < share) {
        const unsigned *counts = &near[0][0].x, *lows = &near[1][0].x, *highs = &near[2][0].x;
        Sum sum{};
        for (unsigned from = t; from < kBins; from += share)
          sum = sum + Sum{(u64{highs[from]} << 32) + lows[from], counts[from]};
        write(team.rank * share + t, sum, 0);
      }
      team.sync();
    }
    if (team.rank != 0) return;
    Sum own{}, upto{};
    if (mine) {
      for (unsigned j = 0; j < 4; ++j) own = own + at(4 * t + j);
      upto = warp_inclusive(own, Plus{});
      if (lane == 31) of_warp[warp] = upto;
    }
    __syncthreads();
    if (mine) {
      for (unsigned w = 0; w < warp; ++w) upto = upto + of_warp[w];
      upto = upto - own;
      for (unsigned j = 0; j < 4; ++j) write(4 * t + j, upto = upto + at(4 * t + j), 0);
    }
    __syncthreads();
  }

  // After sum_up(). make_goal() is asked in one warp of block 0. What its threads wrote before, all see after.
  template <typename MakeGoal>
  __device__ Bin find(const Team& team, MakeGoal make_goal) {
    if (team.rank == 0 && threadIdx.x < 32) {
      const unsigned lane = threadIdx.x;
      const Goal wanted = make_goal();
      unsigned number = kNone;
      if (const unsigned rows = __ballot_sync(kFullWarp, wanted.reached(at(32 * lane + 31)))) {
        const unsigned first = 32 * (__ffs(rows) - 1);
        number = first + __ffs(__ballot_sync(kFullWarp, wanted.reached(at(first + lane)))) - 1;
      }
      if (lane == 0) {
        goal = wanted;
        found = {number, number == kNone || number == 0 ? Sum{} : at(number - 1)};
      }
    }
    team.sync();
    return *in_block(&found, 0);
  }

 private:
  __device__ void write(unsigned b, const Sum& sum, unsigned rank) {
    *in_block(&count[b], rank) = sum.count;
    *in_block(&low[b], rank) = static_cast<unsigned>(sum.mass);
    *in_block(&high[b], rank) = static_cast<unsigned>(sum.mass >> 32);
  }
};

}  // namespace nybble::cuda
