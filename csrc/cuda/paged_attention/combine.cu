// The partial results of a row to its answer: o = sum of 2^(m_i - m) values_i / sum of 2^(m_i - m) weight_i, m the
// largest m_i; then rotated back if the values were stored rotated.
//
//   block    one row (b, t, h); first each thread takes a part's m_i and weight, and all learn m
//   warp w   values of parts w, w + warps, ... in order; then the warps' sums meet in shared memory, in order
//   lane     channels 4 l ... 4 l + 3, then 128 further on
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/rotate.cuh"

namespace nybble::cuda::paged {
namespace {

// The slots of sequence b, one after the other.
struct Slots {
  int64_t first;
  int count;
};
__device__ Slots slots_of(const PagedAttentionArgs& a, const Plan& plan, int64_t b) {
  if (a.batch_invariant) return {b * plan.ranges, min(plan.ranges, count_of(a, plan, b))};
  const Before tiles = tiles_before(a, plan, b);
  const int count = count_of(a, plan, b);
  if (count == 0) return {0, 0};
  const Cuts cuts(tiles.all, plan.ranges);
  const int first = cuts.range_of(tiles.before);
  return {first + b, cuts.range_of(tiles.before + count - 1) - first + 1};
}

// Channels d ... d + 3 of a part, those past the last 0.
__device__ float4 read_four(const float* values, int d, int D) {
  if (D % 4 == 0) return *reinterpret_cast<const float4*>(values + d);
  const auto one = [&](int i) { return d + i < D ? values[d + i] : 0.0f; };
  return {one(0), one(1), one(2), one(3)};
}

template <typename Type, int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    combine_kernel(const __grid_constant__ PagedAttentionArgs a, const __grid_constant__ Plan plan, bool rotated) {
  extern __shared__ __align__(16) float shared[];  // [kWarps][D rounded up to 4] sums, [parts] of {m, weight}
  constexpr int kThreads = 32 * kWarps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, D = static_cast<int>(a.D), padded = (D + 3) / 4 * 4;
  float2* parts = reinterpret_cast<float2*>(shared + kWarps * padded);
  const unsigned row = blockIdx.x, H = static_cast<unsigned>(a.H), T = static_cast<unsigned>(a.T), group = plan.group;
  const unsigned h = row % H, t = row / H % T, b = row / H / T;
  const unsigned stored = h / group * plan.rows + t * group + h % group;
  // What only kernels before the last one wrote: see wait_for_previous().
  const Slots slots = slots_of(a, plan, b);
  const int count = slots.count;
  wait_for_previous();
  let_next_begin();

  float largest = -INFINITY;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    parts[i] = *partial_state(a, plan, slots.first + i, stored);
    largest = fmaxf(largest, parts[i].x);
  }
  largest = block_reduce<Max, kThreads>(largest);
  const float base = largest == -INFINITY ? 0.0f : largest;
  float weight = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    parts[i].x = exp2_fast(parts[i].x - base);
    weight += parts[i].x * parts[i].y;
  }
  weight = block_reduce<Add, kThreads>(weight);

  for (int d = 4 * lane; d < D; d += 128) {
    float4 sum{};
#pragma unroll 8
    for (int i = warp; i < count; i += kWarps) {
      const float factor = parts[i].x;
      float4 v{};
      if (factor != 0) v = read_four(partial_values(a, slots.first + i, stored), d, D);
      sum.x += factor * v.x, sum.y += factor * v.y, sum.z += factor * v.z, sum.w += factor * v.w;
    }
    *reinterpret_cast<float4*>(shared + warp * padded + d) = sum;
  }
  __syncthreads();

  const float factor = weight == 0 ? 0.0f : 1.0f / (rotated ? 32.0f * weight : weight);
  Type* out = static_cast<Type*>(a.o) + row * a.D;
  for (int first = 64 * warp; first < D; first += 64 * kWarps) {
    float v[2] = {};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int d = first + 2 * lane + e;
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        if (d < D) v[e] += shared[w * padded + d];
      v[e] *= factor;
    }
    if (rotated) rotate(v);
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (first + 2 * lane + e < D) out[first + 2 * lane + e] = from_float<Type>(v[e]);
  }
}

template <typename Type, int kWarps>
Status launch_combine(const PagedAttentionArgs& a, const Plan& plan, bool rotated, Stream stream) {
  const auto kernel = combine_kernel<Type, kWarps>;
  const int64_t bytes = (kWarps * ((a.D + 3) / 4 * 4) + 2 * plan.ranges) * static_cast<int64_t>(sizeof(float));
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return status(error);
  return launch(kernel, dim3(static_cast<unsigned>(a.B * a.T * a.H)), dim3(32 * kWarps), bytes, stream, gpu().sm >= 90,
                a, plan, rotated);
}

}  // namespace

Status combine(const PagedAttentionArgs& a, const Plan& plan, bool rotated, Stream stream) {
  if (a.B * a.T * a.H > 0x7fffffff) return {"paged_attention: more than 2^31 - 1 query rows"};
  // Parts of a sequence, if all are of one length.
  const int64_t parts = a.batch_invariant ? plan.ranges : plan.ranges / a.B + 2;
  return with_type(a.dtype, [&](auto type) {
    using Type = typename decltype(type)::type;
    return parts > 64   ? launch_combine<Type, 16>(a, plan, rotated, stream)
           : parts > 16 ? launch_combine<Type, 4>(a, plan, rotated, stream)
                        : launch_combine<Type, 1>(a, plan, rotated, stream);
  });
}

}  // namespace nybble::cuda::paged
