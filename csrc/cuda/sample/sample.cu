// One token a row. The candidates' order is by logit, then by id; each filter keeps a prefix of it, so that all that
// is asked of it are two places: where the first filter ends (the mass up to there is kept), and where the running sum
// exceeds random * kept. Neither needs a sort:
//
//   row  [ block 0 | block 1 | ... ]   1. its largest and least logit
//   bins [ 0 1 2 ... 1023 ]            2. count and mass of every bin of logits, the largest logits in bin 0
//                                      3. running sums over bins say in which bin the place is
//   list [ ... ]                       4. its few candidates are compared with each other
//
// A bin with too many candidates for that is divided again. The blocks of a cluster share a row; block 0 joins their
// bins and searches. Mass is a whole number, so the sums are the same in every order and the token in every run.
#include "cuda/common/number.cuh"
#include "cuda/sample/bins.cuh"
#include "cuda/sample/row.cuh"
#include "ops/sample.h"

namespace nybble::cuda {
namespace {

constexpr unsigned kList = 512;  // candidates that are looked at one by one

struct Candidate {
  u64 key;  // in order of logit, then of id
  u64 mass;
};

struct Place {
  u64 mass;  // up to here, this candidate included
  unsigned id;
};

struct Shared {
  Bins bins;
  Candidate list[kList];
  unsigned listed[2];  // by turn
  unsigned nth;
  Place place;
};

struct Keys {
  unsigned most, least;
  __device__ Keys operator+(const Keys& other) const { return {max(most, other.most), min(least, other.least)}; }
};

class Sampler {
 public:
  __device__ Sampler(Team& team, Shared& shared, const float* row, unsigned V, const Extent& extent, float temperature,
                     float min_p, unsigned top_k)
      : team_(team), s_(shared), row_(row), V_(V), top_k_(top_k), largest_(extent.largest), least_(min_p) {
    const float inverse = Softmax(largest_, temperature).inverse;
    // V times 1 fits, and what is lost of V small weights is less than a float's rounding of 1. More bits would have
    // more weights reach the high half.
    const int bits = min(62 - (32 - __clz(V)), 40);
    scale_ = __uint_as_float(static_cast<unsigned>(bits + 127) << 23);
    const float reach = static_cast<float>(bits + 1) * 0.69315f / inverse;  // no mass beyond
    bins_a_logit_ = -fminf(static_cast<float>(kBins) / fminf(largest_ - extent.least, reach), FLT_MAX);
    doublings_a_logit_ = inverse * 1.44269504f;
  }

  // The token, in block 0. The others know no goals: they count and list.
  __device__ unsigned choose(float top_p, float random) {
    const bool filtered = top_k_ < V_ || top_p < 1.0f;
    u64 all = 0, kept = 0;
    unsigned id = kNone;
    bool filled = false, first = true;
#pragma unroll 1
    for (turn_ = filtered ? 0 : 1; turn_ < 2; ++turn_) {  // where the filters end, and the draw
      if (!filled) {
        u64 seen = 0;
        fill([&](float x, u64 m) {
          seen += m;
          return bin_of(x);
        });
        s_.bins.sum_up(team_);
        if (first) {
          all = kept = s_.bins.at(kBins - 1).mass;
          if (top_p < 1.0f && least_ > 0) all = team_.reduce(seen, Plus{});
        }
        filled = true;
        first = false;
      }
      const Bin bin = find([&] {
        if (turn_ == 1) return Goal{static_cast<u64>(static_cast<double>(random) * kept) + 1, kNone};
        const u64 wanted = top_p < 1.0f ? static_cast<u64>(ceil(static_cast<double>(top_p) * all)) : kNoMass;
        return Goal{max(wanted, u64{1}), top_k_};
      });
      if (bin.number == kNone) continue;
      const Goal goal = s_.bins.goal;
      const auto in_bin = [&](float x) { return bin_of(x) == bin.number; };
      if (!locate(in_bin, bin.before, goal)) {
        divide(in_bin, bin.before, goal);
        filled = false;
      }
      kept = s_.place.mass;
      id = s_.place.id;
    }
    return id;
  }

 private:
  // exp((x - largest) / temperature). Where both are infinite the difference is NaN, and fminf takes the other, here
  // and below: infinite logits have equal shares.
  __device__ float weight(float x) const {
    const float power = fminf((x - largest_) * doublings_a_logit_, 0.0f);
    return exp2_approximate(power);
  }
  __device__ u64 mass(float weight) const { return __float2ull_rn(weight * scale_); }
  // Never less for a smaller logit.
  __device__ unsigned bin_of(float x) const { return fminf((x - largest_) * bins_a_logit_, kBins - 1); }

  // The bins of all candidates; which(x, mass): the bin, or kNone.
  template <typename Which>
  __device__ void fill(Which which) {
    s_.bins.clear();
    const bool counts = top_k_ < V_;
    const unsigned bins = shared_address(&s_.bins);
    for_each<2>(team_, row_, V_, [&](float x, unsigned) {
      const float w = weight(x);
      const u64 m = mass(w);
      const unsigned b = which(x, m);
      if (b != kNone && m > 0 && w >= least_) Bins::add(bins, b, m, counts);
    });
  }

  template <typename MakeGoal>
  __device__ Bin find(MakeGoal goal) {
    if (threadIdx.x == 0) s_.listed[turn_] = 0;
    return s_.bins.find(team_, goal);
  }

  // Finds the place among the candidates for which in(x), after those before; false if they are too many.
  template <typename In>
  __device__ bool locate(In in, const Sum& before, const Goal& goal) {
    for_each<4>(team_, row_, V_, [&](float x, unsigned i) {
      if (!in(x)) return;
      const unsigned at = atomicAdd(in_block(&s_.listed[turn_], 0), 1u);
      if (at < kList) in_block(&s_.list[at], 0)->key = static_cast<u64>(ordered(x)) << 32 | ~i;
    });
    team_.sync();
    const unsigned n = *in_block(&s_.listed[turn_], 0), t = threadIdx.x;
    if (n > kList) return false;
    if (team_.rank != 0) return true;
    if (t < n) {
      const float w = weight(from_ordered(static_cast<unsigned>(s_.list[t].key >> 32)));
      s_.list[t].mass = w >= least_ ? mass(w) : 0;
    }
    __syncthreads();
    // Candidate t / threads: its threads, at most a warp, share the others out.
    const unsigned size = n > 32 ? 1u << (32 - __clz(n - 1)) : 32, threads = kTeamThreads / size, which = t / threads;
    const Candidate mine = which < n ? s_.list[which] : Candidate{};
    Sum start{};
    const unsigned others = which < n ? n : 0;
#pragma unroll 4
    for (unsigned j = t % threads; j < others; j += threads) {
      const Candidate other = s_.list[j];
      if (other.key > mine.key) start = start + Sum{other.mass, 1};
    }
    for (unsigned distance = threads / 2; distance > 0; distance /= 2)
      start = start + shuffle<Shuffle::butterfly>(start, distance);
    start = start + before;
    const Sum end = start + Sum{mine.mass, which < n};
    if (!goal.reached(start) && goal.reached(end)) s_.place = {end.mass, ~static_cast<unsigned>(mine.key)};
    __syncthreads();
    return true;
  }

  // The same for any number of them: bins of keys, until those of one bin are few or all the same.
  template <typename In>
  __device__ void divide(In in, Sum before, const Goal& goal) {
    Keys keys{0, kNone};
    for_each<2>(team_, row_, V_, [&](float x, unsigned) {
      if (in(x)) keys = keys + Keys{ordered(x), ordered(x)};
    });
    keys = team_.reduce(keys, Plus{});
    const auto inside = [&](float x) { return ordered(x) <= keys.most && ordered(x) >= keys.least; };
    while (keys.most > keys.least) {
      const int shift = max(32 - kBinBits - __clz(keys.most - keys.least), 0);
      fill([&](float x, u64) { return inside(x) ? (keys.most - ordered(x)) >> shift : kNone; });
      s_.bins.sum_up(team_);
      const Bin bin = find([&] { return Goal{goal.mass - before.mass, goal.count - before.count}; });
      before = before + bin.before;
      keys.most -= bin.number << shift;
      keys.least = max(keys.least, keys.most - min((1u << shift) - 1, keys.most));
      if (locate(inside, before, goal)) return;
    }
    // All the same: the place is a quotient, and the ids are in order already.
    if (team_.thread() == 0) {
      const u64 each = mass(weight(from_ordered(keys.most)));
      s_.nth = min(u64{goal.count - before.count}, (goal.mass - before.mass + each - 1) / each);
      s_.place.mass = before.mass + s_.nth * each;
    }
    team_.sync();
    const unsigned nth = *in_block(&s_.nth, 0);
    team_.select(
        0, V_, [&](unsigned i) { return inside(row_[i]); },
        [&](unsigned rank, unsigned i) {
          if (rank + 1 == nth) in_block(&s_.place, 0)->id = i;
        });
    team_.sync();
  }

  Team& team_;
  Shared& s_;
  const float* row_;
  unsigned V_, top_k_;
  float largest_;
  float least_;  // weights below it are filtered
  float scale_;  // mass of a weight of 1
  float bins_a_logit_, doublings_a_logit_;
  int turn_ = 0;
};

// A cluster of blocks a row; a: as in ops/sample.h, all on the device.
__global__ void __launch_bounds__(kTeamThreads, 1) sample_kernel(SampleArgs a) {
  wait_for_previous();
  let_next_begin();
  Team team;
  const int64_t b = blockIdx.x / team.size;
  const auto V = static_cast<unsigned>(a.V);
  const float* row = a.logits + b * a.stride;
  const float temperature = a.temperature[b], top_p = a.top_p[b], min_p = a.min_p[b], random = a.random[b];
  const int64_t top_k = a.top_k[b];
  Extent extent;
  for_each<4>(team, row, V, [&](float x, unsigned i) { extent.take(x, i); });
  extent = team.reduce(extent, Plus{});
  const bool good = temperature >= 0 && top_k >= 0 && top_p >= 0 && top_p <= 1 && min_p >= 0 && min_p <= 1 &&
                    random >= 0 && random < 1;  // each is false for NaN
  int64_t token = extent.nothing() || !good ? -1 : static_cast<int64_t>(extent.id);
  if (token >= 0 && temperature > 0) {
    __shared__ Shared shared;
    const unsigned kept = top_k > 0 && top_k < a.V ? static_cast<unsigned>(top_k) : kNone;
    token = Sampler(team, shared, row, V, extent, temperature, min_p, kept).choose(top_p, random);
  }
  if (team.thread() == 0) a.token[b] = token;
  cluster_leave();
}

}  // namespace

Status sample(const SampleArgs& a, Stream stream) {
  if (a.B == 0) return {};
  if (a.V > 0x7fffffff) return {"more than 2^31 - 1 logits in a row"};
  const unsigned blocks = blocks_of_row(a.B, a.V);
  if (a.B > 0x7fffffff / blocks) return {"more than 2^31 - 1 blocks of rows"};
  return launch_clusters(sample_kernel, dim3(static_cast<unsigned>(a.B) * blocks), static_cast<int>(blocks),
                         dim3(kTeamThreads), 0, stream, gpu().sm >= 90, a);
}

}  // namespace nybble::cuda
