// The candidates of one row of sample_chain, in memory that the team shares, and a sort of them. Every member is called
// by all threads of the team and returns when what it wrote is seen by all.
#pragma once
#include "cuda/sample/bins.cuh"
#include "cuda/sample/row.cuh"

namespace nybble::cuda {

// What is less probable than this, a sort leaves behind and unsorted: no draw tells it from 0.
constexpr float kNoise = 1e-8f;
constexpr int kMassBits = 60;  // probabilities as whole numbers: any sum of them is below 8

__device__ inline u64 fixed(double v, int bits) { return static_cast<u64>(__double2ll_rn(ldexp(v, bits))); }
__device__ inline u64 mass(float p) { return __float2ull_rn(p * 1.152921504606846976e18f); }  // 2^60

// Of a candidate packed with its id.
__device__ inline float probability(u64 packed) { return __uint_as_float(static_cast<unsigned>(packed >> 32)); }

// A 1 as a whole number, of which n fit into 64 bits.
__device__ inline float whole_numbers(unsigned n) {
  return __uint_as_float(static_cast<unsigned>(127 + 62 - (32 - __clz(n))) << 23);
}

constexpr unsigned kDigits = 256;  // of a pass of the sort

struct Shared {
  union {
    struct {
      unsigned at[kTeamWarps][kDigits];  // where each warp's next number with this digit goes
      unsigned of_digit[kDigits];        // the block's numbers with this digit
      unsigned of_warp[kDigits / 32];
    };
    u64 work[kTeamThreads];  // a small sort
    Bins bins;
  };
  unsigned count;
};

class Candidates {
 public:
  Team team;
  Shared& shared;
  float* p;         // [V] probabilities
  unsigned* id;     // [V] whose they are
  float* of_id;     // [V] work: the probability of a token
  u64 *keys, *aux;  // [V] work
  unsigned V, n = 0;
  bool by_id = true;  // in order of id

  // Of the memory of a row.
  static __host__ __device__ int64_t bytes(int64_t V) {
    constexpr int64_t each = 2 * sizeof(u64) + 2 * sizeof(float) + sizeof(unsigned);
    return (V * each + 15) / 16 * 16;
  }

  __device__ Candidates(Shared& shared, unsigned V, char* memory) : shared(shared), V(V) {
    keys = reinterpret_cast<u64*>(memory);
    aux = keys + V;
    p = reinterpret_cast<float*>(aux + V);
    of_id = p + V;
    id = reinterpret_cast<unsigned*>(of_id + V);
  }

  template <typename F>
  __device__ void each(F f) const {
#pragma unroll 4
    for (unsigned i = team.thread(); i < n; i += team.threads()) f(i);
  }

  // The sum of f(i), exact to 2^-bits for each, whatever the number of blocks.
  template <typename F>
  __device__ double sum(int bits, F f) {
    u64 mine = 0;
    each([&](unsigned i) { mine += fixed(f(i), bits); });
    const u64 all = team.reduce(mine, Plus{});
    return ldexp(static_cast<double>(static_cast<long long>(all)), -bits);
  }

  __noinline__ __device__ float largest() {
    float most = 0;
    each([&](unsigned i) { most = fmaxf(most, p[i]); });
    return team.reduce(most, Most{});
  }

  __noinline__ __device__ unsigned count_from(float least) {  // as probable as `least`
    unsigned count = 0;
    each([&](unsigned i) { count += p[i] >= least; });
    return team.reduce(count, Plus{});
  }

  // Divides by the sum of the probabilities, none of which is over 1.
  __noinline__ __device__ void renormalise() {
    const float one = whole_numbers(n);
    u64 mine = 0;
    each([&](unsigned i) { mine += __float2ull_rn(p[i] * one); });
    scale(mine, one);
  }
  __noinline__ __device__ void scale(u64 mine, float one) {  // by the team's sum of `mine`
    const u64 all = team.reduce(mine, Plus{});
    const auto inverse = static_cast<float>(static_cast<double>(one) / static_cast<double>(all));
    each([&](unsigned i) { p[i] *= inverse; });
    team.sync();
  }

  __device__ void keep(unsigned count) {  // the first ones
    n = count;
    renormalise();
  }

  __device__ u64 packed(unsigned i) const { return static_cast<u64>(__float_as_uint(p[i])) << 32 | id[i]; }

  // Lists in keys[] what is at least as probable as `least`; how many.
  __noinline__ __device__ unsigned list_from(float least) {
    const unsigned count = team.select(
        0, n, [&](unsigned i) { return p[i] >= least; }, [&](unsigned at, unsigned i) { keys[at] = packed(i); });
    team.sync();
    return count;
  }

  // The first `count` of `sorted` are the candidates.
  __device__ void take(const u64* sorted, unsigned count) {
    for (unsigned i = team.thread(); i < count; i += team.threads()) {
      p[i] = probability(sorted[i]);
      id[i] = static_cast<unsigned>(sorted[i]);
    }
    by_id = false;
  }

  // Sorts by probability, then by id, both descending; how many are more than noise.
  __noinline__ __device__ unsigned sort() {
    // In order of id already: sorted by probability alone, from the highest id.
    const unsigned real = by_id ? count_from(kNoise) : 0;
    team.select(
        0, n, [&](unsigned i) { return p[i] >= kNoise; },
        [&](unsigned at, unsigned i) { keys[by_id ? real - 1 - at : at] = packed(i); });
    const unsigned sorted = n - team.select(
                                    0, n, [&](unsigned i) { return !(p[i] >= kNoise); },
                                    [&](unsigned at, unsigned i) { aux[V - 1 - at] = packed(i); });
    team.sync();
    const u64* result = sort_keys(sorted, by_id ? 32 : 0);
    take(result, sorted);
    for (unsigned at = team.thread(); at < n - sorted; at += team.threads()) {
      p[sorted + at] = probability(aux[V - 1 - at]);
      id[sorted + at] = static_cast<unsigned>(aux[V - 1 - at]);
    }
    team.sync();
    return sorted;
  }

  // The first `count` of keys[], descending by the bits from `bit` on, what is equal there as it was; where the result
  // is: in keys or in aux, of which no more than `count` are touched.
  __noinline__ __device__ const u64* sort_keys(unsigned count, int bit) {
    if (count <= kTeamThreads) {
      if (team.rank == 0) sort_few(count);
      team.sync();
      return keys;
    }
    u64 *from = keys, *to = aux;
    for (; bit < 64; bit += 8) {
      if (!pass(from, to, count, bit)) continue;
      u64* const moved = to;
      to = from;
      from = moved;
    }
    return from;
  }

 private:
  // In one block: each has as many before it as are larger.
  __device__ void sort_few(unsigned count) {
    const unsigned t = threadIdx.x;
    const u64 key = t < count ? keys[t] : 0;
    shared.work[t] = key;
    __syncthreads();
    if (t >= count) return;
    unsigned before = 0;
#pragma unroll 8
    for (unsigned j = 0; j < count; ++j) before += shared.work[j] > key;
    keys[before] = key;
  }

  // One pass of a radix sort, each warp with a piece of `from`; false if there is nothing to do.
  __device__ bool pass(const u64* from, u64* to, unsigned count, int bit) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = threadIdx.x;
    const unsigned warps = team.size * kTeamWarps, piece = (count + warps - 1) / warps;
    const unsigned begin = min((team.rank * kTeamWarps + warp) * piece, count), end = min(begin + piece, count);
    const auto digit = [&](u64 key) { return kDigits - 1 - (static_cast<unsigned>(key >> bit) & (kDigits - 1)); };
    unsigned* const at = shared.at[warp];
    for (unsigned d = lane; d < kDigits; d += 32) at[d] = 0;
    __syncwarp();
#pragma unroll 4
    for (unsigned i = begin + lane; i < end; i += 32) atomicAdd(&at[digit(from[i])], 1u);
    __syncthreads();
    if (t < kDigits) {
      unsigned sum = 0;
      for (unsigned w = 0; w < kTeamWarps; ++w) {
        const unsigned here = shared.at[w][t];
        shared.at[w][t] = sum;
        sum += here;
      }
      shared.of_digit[t] = sum;
    }
    team.sync();
    unsigned all = 0, before = 0;
    for (unsigned r = 0; t < kDigits && r < team.size; ++r) {
      const unsigned there = *in_block(&shared.of_digit[t], r);
      all += there;
      if (r < team.rank) before += there;
    }
    const bool one_digit = __syncthreads_or(all == count);
    unsigned first = warp_inclusive(all, Plus{});
    if (t < kDigits && lane == 31) shared.of_warp[warp] = first;
    __syncthreads();
    for (unsigned w = 0; t < kDigits && w < warp; ++w) first += shared.of_warp[w];
    first += before - all;
    if (!one_digit) {
      for (unsigned w = 0; t < kDigits && w < kTeamWarps; ++w) shared.at[w][t] += first;
      __syncthreads();
      for (unsigned tile = begin; tile < end; tile += 32) {
        const bool mine = tile + lane < end;
        const u64 key = mine ? from[tile + lane] : 0;
        const unsigned d = mine ? digit(key) : kDigits;
        const unsigned same = lanes_alike(d);
        const unsigned rank = __popc(same & ((1u << lane) - 1));
        const unsigned place = mine ? at[d] + rank : 0;
        __syncwarp();
        if (mine) {
          to[place] = key;
          if (rank == 0) at[d] += __popc(same);
        }
        __syncwarp();
      }
    }
    team.sync();
    return !one_digit;
  }
};

}  // namespace nybble::cuda
