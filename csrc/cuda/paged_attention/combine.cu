// The partial results of a row to its answer: o = sum of 2^(m_i - m) values_i / sum of 2^(m_i - m) weight_i, m the
// largest m_i; then rotated back if the values were stored rotated.
//
//   warps of a row   parts w, w + warps, ...; then the warps' results meet in shared memory, in order
//   lane             channels 2l and 2l + 1 of a group of 64, as rotate() wants them
#include "cuda/common/number.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/rotate.cuh"

namespace nybble::cuda::paged {
namespace {

constexpr int kAtOnce = 8;  // parts whose state and values are fetched together: all of this is waiting

// Where a part's D values lie, and its {m, weight}.
struct Part {
  const float* values;
  const float2* state;
};

// A sum of parts, relative to the largest m among them. A lane has channels d and d + 1.
struct Sum {
  float largest = -INFINITY, weight = 0, value[2] = {};

  template <int kParts>
  __device__ void add(const float2 (&state)[kParts], const float2 (&values)[kParts]) {
    float top = largest;
#pragma unroll
    for (int i = 0; i < kParts; ++i) top = fmaxf(top, state[i].x);
    const float base = top == -INFINITY ? 0.0f : top, fade = exp2_fast(largest - base);
    largest = top;
    weight *= fade, value[0] *= fade, value[1] *= fade;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float factor = exp2_fast(state[i].x - base);
      weight += factor * state[i].y, value[0] += factor * values[i].x, value[1] += factor * values[i].y;
    }
  }

  // Parts first, first + step, ... below count; `part(i)` is where the i-th lies.
  template <typename Where>
  __device__ void add_parts(int first, int step, int count, int d, int D, Where part) {
    for (int i0 = first; i0 < count; i0 += kAtOnce * step) {
      float2 state[kAtOnce], values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        state[i] = {-INFINITY, 0.0f};
        values[i] = {0.0f, 0.0f};
        if (i0 + i * step >= count) continue;
        const Part p = part(i0 + i * step);
        state[i] = *p.state;
        if (d < D && D % 2 == 0) values[i] = *reinterpret_cast<const float2*>(p.values + d);
        if (d < D && D % 2 != 0) values[i] = {p.values[d], d + 1 < D ? p.values[d + 1] : 0.0f};
      }
      add(state, values);
    }
  }

  // The sums of so many warps, in order: each has left its own by save(). `saved(w)` is where; kMost: warps at most.
  struct Saved {
    float2 values[32], state;
  };
  __device__ void save(Saved& to) const {
    to.values[threadIdx.x % 32] = {value[0], value[1]};
    if (threadIdx.x % 32 == 0) to.state = {largest, weight};
  }
  template <int kMost, typename Where>
  __device__ void join(int warps, Where saved) {
    float2 state[kMost], values[kMost];
#pragma unroll
    for (int w = 0; w < kMost; ++w) {
      state[w] = {-INFINITY, 0.0f};
      values[w] = {0.0f, 0.0f};
      if (w < warps) state[w] = saved(w)->state, values[w] = saved(w)->values[threadIdx.x % 32];
    }
    *this = Sum{};
    add(state, values);
  }

  // The answer's channels d and d + 1. The whole warp calls it.
  template <typename Type>
  __device__ void write(Type* out, int d, int D, bool rotated) const {
    const float factor = weight == 0 ? 0.0f : 1.0f / (rotated ? 32.0f * weight : weight);
    float v[2] = {value[0] * factor, value[1] * factor};
    if (rotated) rotate(v);
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (d + e < D) out[d + e] = from_float<Type>(v[e]);
  }
};

// The ranges with tiles of sequence b, one after the other. The whole warp calls it.
struct Parts {
  int64_t first;  // batch invariant: counted over all sequences
  int count;
};
__device__ inline Parts parts_of(const PagedAttentionArgs& a, const Plan& plan, int64_t b) {
  const int count = count_of(a, plan, b);
  if (a.batch_invariant) return {b * plan.ranges, min(plan.ranges, count)};
  const Before tiles = a.B == 1 ? Before{0, count} : tiles_before(a, plan, b);
  if (count == 0) return {0, 0};
  const Cuts cuts(tiles.all, plan.ranges);
  const int first = cuts.range_of(tiles.before), last = cuts.range_of(tiles.before + count - 1);
  return {first, last - first + 1};
}

// Grid: rows (kRowsOfBlock a block) x groups of 64 channels.
template <typename Type, int kWarps, int kRowsOfBlock>
__global__ void __launch_bounds__(32 * kWarps * kRowsOfBlock)
    combine_kernel(const __grid_constant__ PagedAttentionArgs a, const __grid_constant__ Plan plan, bool rotated) {
  static_assert(kWarps == 1 || kRowsOfBlock == 1, "a barrier of the block is one of the row");
  const int warp = threadIdx.x / 32, D = static_cast<int>(a.D);
  const int d = static_cast<int>(blockIdx.y) * 64 + 2 * static_cast<int>(threadIdx.x % 32);
  const unsigned row = blockIdx.x * kRowsOfBlock + warp / kWarps;
  const unsigned H = static_cast<unsigned>(a.H), T = static_cast<unsigned>(a.T), group = plan.group;
  const unsigned h = row % H, t = row / H % T, b = row / H / T;
  if (b >= a.B) return;
  const unsigned stored = h / group * plan.rows + t * group + h % group;
  // What only kernels before the last one wrote: see wait_for_previous().
  const Parts parts = parts_of(a, plan, b);
  wait_for_previous();
  let_next_begin();

  const int64_t first = a.batch_invariant ? parts.first : parts.first + b;  // as slot_of()
  Sum sum;
  sum.add_parts(warp % kWarps, kWarps, parts.count, d, D, [&](int i) -> Part {
    return {partial_values(a, first + i, stored), partial_state(a, plan, first + i, stored)};
  });
  if constexpr (kWarps > 1) {
    __shared__ Sum::Saved saved[kWarps];
    sum.save(saved[warp]);
    __syncthreads();
    if (warp > 0) return;
    sum.join<kWarps>(kWarps, [&](int w) { return saved + w; });
  }
  sum.write(static_cast<Type*>(a.o) + static_cast<int64_t>(row) * a.D, d, D, rotated);
}

}  // namespace

Status combine(const PagedAttentionArgs& a, const Plan& plan, bool rotated, Stream stream) {
  const int64_t rows = a.B * a.T * a.H;
  if (rows > 0x7ffffff0) return {"paged_attention: more than 2^31 - 16 query rows"};
  // Parts of a sequence, if all are of one length.
  const int64_t parts = a.batch_invariant ? plan.ranges : plan.ranges / a.B + 2;
  return with_type(a.dtype, [&](auto type) {
    using Type = typename decltype(type)::type;
    const auto start = [&](auto kernel, int warps, int rows_of_block) {
      const dim3 grid(static_cast<unsigned>((rows + rows_of_block - 1) / rows_of_block),
                      static_cast<unsigned>((a.D + 63) / 64));
      return launch(kernel, grid, dim3(32 * warps * rows_of_block), 0, stream, gpu().sm >= 90, a, plan, rotated);
    };
    return parts > 4 * kAtOnce ? start(combine_kernel<Type, 16, 1>, 16, 1)
           : parts > kAtOnce   ? start(combine_kernel<Type, 4, 1>, 4, 1)
                               : start(combine_kernel<Type, 1, 4>, 1, 4);
  });
}

}  // namespace nybble::cuda::paged
