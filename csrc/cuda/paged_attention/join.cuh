// Ranges for blocks, not warps: the warps of a block take their shares of each sequence in its range and add them up in
// shared memory. Where a sequence lies in one range only, that is the answer. Otherwise the block leaves pieces, each
// 64 channels of one row, in scratch, and the warp that leaves the last one of a kind adds these up, always in the
// order of the ranges. No second kernel follows.
//
// That it is the last it knows by counting. Scratch holds anything at first: a counter that does not bear the mark of
// this call, 56 bits which chance does not bring about, is begun anew by whoever comes first.
#pragma once
#include "cuda/common/kept.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/sum.cuh"

namespace nybble::cuda::paged {

// Counters of scratch, then states, then values of pieces: one for each sequence, or range and sequence, and virtual
// head, row, 64 channels. Those to be added up lie one after the other.
inline int64_t join_bytes(const PagedAttentionArgs& a, const Plan& plan) {
  const int64_t kinds = plan.heads * kRows * ((a.D + 63) / 64);
  return kinds * (a.B * sizeof(uint64_t) + (plan.blocks + a.B) * (sizeof(float2) + 32 * sizeof(float2)));
}

// A part of a sequence, of all ranges that have one.
struct Part {
  int64_t b;
  int first, count, mine;  // ranges
};

// One more, after what this thread has seen written and before what it reads next. Returns the count before.
__device__ inline unsigned long long add_in_order(unsigned long long* count) {
  unsigned long long before = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(count) : "memory");
#endif
  return before;
}

// kOne: one sequence. What is long after the last value has come is short: each instruction is fetched to be used once.
template <typename ValueStorage, int D, bool kOne>
class Join {
 public:
  static constexpr int kAtOnce = kRows / 2;  // rows for which there is room
  static constexpr int kBytes = kAtOnce * D * 4;
  // Channels that every other pair of rows is turned by in shared memory, so that a warp's writes do not collide.
  static constexpr int kTurn = ValueStorage::kUnit == 8 ? 8 : 0;

  // `room`: the first warp's kBytes, the others' follow. `states`: of each warp and row.
  __device__ Join(const PagedAttentionArgs& a, const Plan& plan, int virtual_head, char* room, float2 (*states)[kRows])
      : a_(a),
        plan_(plan),
        virtual_head_(virtual_head),
        head_(virtual_head / plan.blocks_of_head),
        first_row_(virtual_head % plan.blocks_of_head * kRows),
        rows_(min(kRows, plan.rows - first_row_)),
        room_(reinterpret_cast<float*>(room)),
        states_(states) {}

  // Counters of sequence b, once nothing else writes to scratch: looked at here, needed in begin().
  __device__ void ask(int64_t b) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
      seen_[i] =
          *static_cast<volatile unsigned long long*>(counter(b, static_cast<int>(threadIdx.x) / 32 + i * kWarps));
  }
  // Before end(), and before what is copied has come.
  __device__ void begin(const Part& part) {
    if constexpr (kOne) place_ = place_of(part, static_cast<int>(threadIdx.x) / 32).kept_whole();
    if (part.count == 1 || threadIdx.x % 32 != 0) return;
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
      if ((seen_[i] & ~255ull) != plan_.mark)
        atomicCAS(counter(part.b, static_cast<int>(threadIdx.x) / 32 + i * kWarps), seen_[i], plan_.mark);
  }

  // All warps, each with its share. `values(c, k, high)`: of row 2t + c, in row g + 8 high of product k.
  template <typename Values>
  __device__ void end(const Part& part, const float2 (&state)[2], Values values) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
    for (int r0 = 0; r0 < rows_; r0 += kAtOnce) {
      const bool now = 2 * t / kAtOnce == r0 / kAtOnce;
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          float* to = room_ + (warp * kAtOnce + 2 * t + c - r0) * D +
                      (ValueStorage::channel_of_value(0, g, high) ^ t % 2 * kTurn);
#pragma unroll
          for (int k = 0; k < D / 16; ++k) {
            const float value = values(c, k, high);
            if (now) to[ValueStorage::channel_of_value(k, 0, 0)] = value;
          }
        }
      if (now && lane < 4) states_[warp][2 * t] = state[0], states_[warp][2 * t + 1] = state[1];
      __syncthreads();
      for (int kind = r0 * kGroups + warp; kind < min(rows_, r0 + kAtOnce) * kGroups; kind += kWarps) {
        const int row = kind / kGroups, d = kind % kGroups * 64 + 2 * lane;
        const Place place = kOne && kind == warp ? place_ : place_of(part, kind);
        Sum<> sum = of_block(row, row - r0, d);
        if (part.count > 1) {
          place.values[0] = {sum.value[0][0], sum.value[0][1]};
          if (lane == 0) *place.state = {sum.largest, sum.weight};
          if (!is_last(part, place.count)) continue;
          sum = of_all(part, place);
        }
        write(sum, place.out, d, ValueStorage::kScaled);
      }
      __syncthreads();
    }
  }

  // Zeros for the sequences without tokens that are seen, which nobody has a part of. One block of a head calls it.
  __device__ void write_empty() const {
    for (int64_t b = threadIdx.x / 32; b < a_.B; b += kWarps) {
      if (count_of(a_, plan_, b) > 0) continue;
      for (int kind = 0; kind < rows_ * kGroups; ++kind)
        write(Sum<>{}, out_of(b, kind), kind % kGroups * 64 + 2 * static_cast<int>(threadIdx.x % 32), false);
    }
  }

 private:
  static constexpr int kGroups = (D + 63) / 64, kKinds = kRows * kGroups, kWarps = kShare;

  __device__ unsigned long long* counter(int64_t b, int kind) const {
    return static_cast<unsigned long long*>(a_.scratch) + (b * plan_.heads + virtual_head_) * kKinds + kind;
  }
  // Where a piece lies, a lane's part of it, what counts its kind, where its answer goes.
  struct Place {
    float2 *state, *values;  // 32 values each
    unsigned long long* count;
    int64_t out;
    __device__ Place kept_whole() const { return {kept(state), kept(values), kept(count), kept(out)}; }
  };
  __device__ Place place_of(const Part& part, int kind) const {
    const int kinds = plan_.heads * kKinds, slots = plan_.blocks + static_cast<int>(a_.B);
    const int64_t at = static_cast<int64_t>(virtual_head_ * kKinds + kind) * slots + part.mine + part.b;
    float2* states = static_cast<float2*>(a_.scratch) + a_.B * kinds;  // a counter has the size of a state
    float2* values = states + static_cast<int64_t>(kinds) * slots + at * 32 + threadIdx.x % 32;
    return {states + at, values, counter(part.b, kind), out_of(part.b, kind)};
  }
  // In `o`, where the row of a kind begins.
  __device__ int64_t out_of(int64_t b, int kind) const {
    const int r = first_row_ + kind / kGroups, t = r / plan_.group, h = head_ * plan_.group + r - t * plan_.group;
    return ((b * a_.T + t) * a_.H + h) * D;
  }

  __device__ Sum<> of_block(int row, int row_of_room, int d) const {
    const int lane = threadIdx.x % 32;
    const float2 state = states_[lane % kWarps][row];
    const float* from = room_ + row_of_room * D + (d ^ row / 2 % 2 * kTurn);
    float2 values[1][kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      values[0][w] = d < D ? *reinterpret_cast<const float2*>(from + w * kAtOnce * D) : make_float2(0.0f, 0.0f);
    Sum<> sum;
    sum.add_spread(state, values);
    return sum;
  }

  // Whether this warp is the last of those that count; if so, it sees what they wrote, and the count begins anew.
  __device__ bool is_last(const Part& part, unsigned long long* count) const {
    bool last = false;
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      last = add_in_order(count) == plan_.mark + part.count - 1;
      if (last) *count = plan_.mark;
    }
    return __shfl_sync(0xffffffffu, last, 0);
  }

  __device__ Sum<> of_all(const Part& part, const Place& mine) const {
    constexpr int kSome = 16;
    const float2 *states = mine.state - (part.mine - part.first), *all = mine.values - (part.mine - part.first) * 32;
    const int lane = threadIdx.x % 32;
    Sum<> sum;
    for (int first = 0; first < part.count; first += kSome) {
      const int some = min(kSome, part.count - first);
      const int l = lane % kSome;
      const float2 state = l < some ? __ldcg(states + first + l) : make_float2(-INFINITY, 0.0f);
      const float2* from = all + first * 32;
      float2 values[1][kSome];
#pragma unroll
      for (int i = 0; i < kSome; ++i) values[0][i] = i < some ? __ldcg(from + i * 32) : make_float2(0.0f, 0.0f);
      sum.add_spread(state, values);
    }
    return sum;
  }

  __device__ void write(const Sum<>& sum, int64_t out, int d, bool rotated) const {
    if (a_.dtype == DType::bf16)
      sum.write(static_cast<__nv_bfloat16*>(a_.o) + out, d, D, rotated);
    else
      sum.write(static_cast<__half*>(a_.o) + out, d, D, rotated);
  }

  const PagedAttentionArgs& a_;
  const Plan& plan_;
  const int virtual_head_, head_, first_row_, rows_;
  float* const room_;
  float2 (*const states_)[kRows];
  unsigned long long seen_[kGroups] = {};
  Place place_;  // of kOne, the warp's first kind
};

}  // namespace nybble::cuda::paged
