// The partial results of a row to its answer: o = sum of 2^(m_i - m) values_i / sum of 2^(m_i - m) weight_i, m the
// largest m_i; then rotated back if the values were stored rotated.
//
//   block    one row (b, t, h)
//   warp w   partial results w, w + 4, ... in order; then the four sums meet in shared memory, in order
//   lane     channels 4 l ... 4 l + 3, then 128 further on
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/rotate.cuh"

namespace nybble::cuda::paged {
namespace {

constexpr int kWarps = 4;

// The slots of sequence b: those of ranges first ... last, of which some may be empty.
struct Slots {
  int first, last;
};
__device__ Slots slots_of(const PagedAttentionArgs& a, const Plan& plan, int64_t b, int& all) {
  if (plan.invariant) {
    all = count_of(a, plan, b);
    return {0, kSegments - 1};
  }
  const Before tiles = tiles_before(a, plan, b);
  all = tiles.all;
  const int count = count_of(a, plan, b);
  if (count == 0) return {0, -1};
  // The last range that begins at or before a tile holds it.
  const auto range_of = [&](int64_t tile) { return static_cast<int>(((tile + 1) * plan.ranges - 1) / tiles.all); };
  return {range_of(tiles.before), range_of(tiles.before + count - 1)};
}

template <typename T>
__global__ void __launch_bounds__(32 * kWarps)
    combine_kernel(const __grid_constant__ PagedAttentionArgs a, const __grid_constant__ Plan plan, bool rotated) {
  extern __shared__ float shared[];  // [kWarps][D], then the weights' sums
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, D = static_cast<int>(a.D);
  const int64_t row = blockIdx.x, h = row % a.H, t = row / a.H % a.T, b = row / a.H / a.T, group = a.H / a.Hk;
  const int64_t stored = h / group * plan.rows + t * group + h % group;
  int all = 0;
  // What only kernels before the last one wrote: see wait_for_previous().
  const Slots slots = slots_of(a, plan, b, all);
  wait_for_previous();
  let_next_begin();

  const int parts = plan.invariant ? kSegments : plan.ranges;
  const auto full = [&](int i) { return i <= slots.last && cut(all, i + 1, parts) > cut(all, i, parts); };
  const auto place = [&](int i) { return plan.invariant ? b * kSegments + i : i + b; };
  float largest = -INFINITY;
  for (int i = slots.first + lane; i <= slots.last; i += 32)
    if (full(i)) largest = fmaxf(largest, partial_state(a, plan, place(i), stored)->x);
  largest = warp_reduce<Max>(largest);
  const float base = largest == -INFINITY ? 0.0f : largest;

  float* sums = shared + warp * D;
  float weight = 0;
  for (int d = 4 * lane; d < D; d += 128) {
    float sum[4] = {};
    weight = 0;
#pragma unroll 4
    for (int i = slots.first + warp; i <= slots.last; i += kWarps) {
      if (!full(i)) continue;
      const float2 state = *partial_state(a, plan, place(i), stored);
      const float* values = partial_values(a, place(i), stored) + d;
      const float factor = exp2_fast(state.x - base);
      weight += factor * state.y;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (d + e < D) sum[e] += factor * values[e];
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (d + e < D) sums[d + e] = sum[e];
  }
  if (lane == 0) shared[kWarps * D + warp] = weight;
  __syncthreads();

  float whole = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) whole += shared[kWarps * D + w];
  const float factor = whole == 0 ? 0.0f : 1.0f / (rotated ? 32.0f * whole : whole);
  T* out = static_cast<T*>(a.o) + row * a.D;
  for (int first = 64 * warp; first < D; first += 64 * kWarps) {
    float v[2] = {};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int d = first + 2 * lane + e;
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        if (d < D) v[e] += shared[w * D + d];
      v[e] *= factor;
    }
    if (rotated) rotate(v);
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (first + 2 * lane + e < D) out[first + 2 * lane + e] = from_float<T>(v[e]);
  }
}

}  // namespace

Status combine(const PagedAttentionArgs& a, const Plan& plan, bool rotated, Stream stream) {
  const int64_t rows = a.B * a.T * a.H;
  if (rows > 0x7fffffff) return {"paged_attention: more than 2^31 - 1 query rows"};
  return with_type(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(combine_kernel<T>, dim3(static_cast<unsigned>(rows)), dim3(32 * kWarps),
                  (kWarps * a.D + kWarps) * sizeof(float), stream, gpu().sm >= 90, a, plan, rotated);
  });
}

}  // namespace nybble::cuda::paged
