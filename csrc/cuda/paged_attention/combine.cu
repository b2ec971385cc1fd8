// The partial results of a row to its answer (sum.cuh). All of this is waiting for memory, so that a warp asks for all
// it needs at once. Warps of a row take parts w, w + warps, ...; then their results meet in shared memory, in order.
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/sum.cuh"

namespace nybble::cuda::paged {
namespace {

// Parts of a warp at once; 16 warps: as many as an H200 has multiprocessors. Of many sequences, which have few parts
// each, there are so many rows that instructions count: a warp takes all 128 channels.
constexpr int kAtOnce = 9, kAtOnceOfMany = 6;

// The slots of sequence b, one after the other. The whole warp calls it.
struct Slots {
  int64_t first;
  int count;
};
__device__ Slots slots_of(const PagedAttentionArgs& a, const Plan& plan, int64_t b) {
  const int count = count_of(a, plan, b);
  if (a.invariant) return {b * plan.ranges, min(plan.ranges, count)};
  if (count == 0) return {0, 0};
  const Before tiles = a.B == 1 ? Before{0, count} : tiles_before(a, plan, b);
  const Cuts cuts(tiles.all, plan.ranges);
  const int first = cuts.range_of(tiles.before);
  return {first + b, cuts.range_of(tiles.before + count - 1) - first + 1};
}

// Channels d and d + 1 of a part, those past the last 0.
__device__ float2 read_two(const float* values, int d, int D) {
  if (d >= D) return {0.0f, 0.0f};
  if (D % 2 == 0) return *reinterpret_cast<const float2*>(values + d);
  return {values[d], d + 1 < D ? values[d + 1] : 0.0f};
}

// Grid: rows (kRowsOfBlock a block) x kGroups groups of 64 channels. Two: heads of 128 channels.
template <typename Type, int kWarps, int kRowsOfBlock, int kAtOnce, int kGroups>
__global__ void __launch_bounds__(32 * kWarps * kRowsOfBlock)
    combine_kernel(const __grid_constant__ PagedAttentionArgs a, const __grid_constant__ Plan plan, bool rotated) {
  static_assert(kWarps == 1 || kRowsOfBlock == 1, "a barrier of the block is one of the row");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int D = kGroups == 2 ? 128 : static_cast<int>(a.D);
  const int d = static_cast<int>(blockIdx.y) * 64 * kGroups + 2 * lane;
  const unsigned row = blockIdx.x * kRowsOfBlock + warp / kWarps;
  const unsigned H = static_cast<unsigned>(a.H), T = static_cast<unsigned>(a.T), group = plan.group;
  const unsigned b = row / (H * T);
  if (b >= a.B) return;
  unsigned stored = row - b * (H * T);  // and as it is, with one query a sequence
  if (T > 1) {
    const unsigned h = stored % H, t = stored / H;
    stored = h / group * plan.rows + t * group + h % group;
  }
  // What only kernels before the last one wrote: see wait_for_previous().
  const Slots slots = slots_of(a, plan, b);
  const float* values_at = partial_values(a, slots.first, stored);
  const float2* state_at = partial_state(a, plan, slots.first, stored);
  const int64_t state_pitch = a.H * a.T, values_pitch = state_pitch * D;
  wait_for_previous();
  let_next_begin();

  Sum<kGroups> sum;
  values_at += warp % kWarps * values_pitch, state_at += warp % kWarps * state_pitch;
  for (int first = warp % kWarps; first < slots.count; first += kAtOnce * kWarps) {
    float2 state[kAtOnce], values[kGroups][kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool there = first + i * kWarps < slots.count;
      state[i] = there ? *state_at : make_float2(-INFINITY, 0.0f);
#pragma unroll
      for (int j = 0; j < kGroups; ++j)
        values[j][i] = there ? read_two(values_at, d + 64 * j, D) : make_float2(0.0f, 0.0f);
      values_at += kWarps * values_pitch, state_at += kWarps * state_pitch;
    }
    sum.add(state, values);
  }
  if constexpr (kWarps > 1) {
    static_assert(kGroups == 1);
    __shared__ float2 states[kWarps], values[kWarps][32];
    values[warp][lane] = {sum.value[0][0], sum.value[0][1]};
    if (lane == 0) states[warp] = {sum.largest, sum.weight};
    __syncthreads();
    if (warp > 0) return;
    float2 each_state[kWarps], each_values[1][kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) each_state[w] = states[w], each_values[0][w] = values[w][lane];
    sum = {};
    sum.add(each_state, each_values);
  }
  sum.write(static_cast<Type*>(a.o) + static_cast<int64_t>(row) * a.D, d, D, rotated);
}

}  // namespace

Status combine(const PagedAttentionArgs& a, const Plan& plan, bool rotated, Stream stream) {
  const int64_t rows = a.B * a.T * a.H;
  if (rows > 0x7ffffff0) return {"paged_attention: more than 2^31 - 16 query rows"};
  // Parts of a sequence, if all are of one length.
  const int64_t parts = a.invariant ? plan.ranges : plan.ranges / a.B + 2;
  return with_type(a.dtype, [&](auto type) {
    using Type = typename decltype(type)::type;
    const auto start = [&](auto kernel, int warps, int rows_of_block, int groups) {
      const dim3 grid(static_cast<unsigned>((rows + rows_of_block - 1) / rows_of_block),
                      static_cast<unsigned>((a.D + 64 * groups - 1) / (64 * groups)));
      return launch(kernel, grid, dim3(32 * warps * rows_of_block), 0, stream, gpu().sm >= 90, a, plan, rotated);
    };
    if (parts > 4 * kAtOnce) return start(combine_kernel<Type, 16, 1, kAtOnce, 1>, 16, 1, 1);
    if (parts > kAtOnce) return start(combine_kernel<Type, 4, 1, kAtOnce, 1>, 4, 1, 1);
    if (a.D == 128) return start(combine_kernel<Type, 1, 4, kAtOnceOfMany, 2>, 1, 4, 2);
    return start(combine_kernel<Type, 1, 4, kAtOnce, 1>, 1, 4, 1);
  });
}

}  // namespace nybble::cuda::paged
