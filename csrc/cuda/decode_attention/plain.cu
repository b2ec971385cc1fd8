// decode_attention without tensor cores. A block walks its slots in tiles of kTile with a running maximum:
//
//   keys    [D/X][L][X]       thread i has slot i: neighbours read neighbouring chunks of 16 bytes
//   weights [kHeads][kTile]   in shared memory; warp w softens head w
//   values  [L][D/X][X]       thread i has chunk i mod D/X of every (128 / (D/X))-th slot; they are summed at the end
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/decode_attention/ring.cuh"

namespace nybble::cuda::ring {
namespace {

static_assert(kTile == kThreads, "a thread has one slot");

template <typename T>
constexpr int kX = 16 / sizeof(T);  // channels of a chunk

template <typename T>
struct alignas(16) Chunk {
  T v[kX<T>];
};

template <typename T, int kHeads>
__global__ void __launch_bounds__(kThreads) plain_kernel(const DecodeAttentionArgs a,  // the op's arguments
                                                         const Parts parts) {          // what blocks leave
  constexpr int X = kX<T>;
  extern __shared__ float shared[];
  const int D = static_cast<int>(a.D), chunks = D / X;
  float* q = shared;                // [kHeads][D], times scale
  float* weights = q + kHeads * D;  // [kHeads][kTile]; then, for one head at a time, [rows][D]
  __shared__ SoftmaxState state[kHeads];
  __shared__ float fade[kHeads];

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  wait_for_previous();
  let_next_begin();
  const Work work(a, parts.count, kHeads);
  for (int i = threadIdx.x; i < kHeads * D; i += kThreads) {
    const T* from = static_cast<const T*>(a.q) + work.b * a.q_stride_b + (work.head0 + i / D) * a.q_stride_h + i % D;
    q[i] = i / D < work.heads ? to_float(*from) * a.scale : 0.0f;
  }
  if (threadIdx.x < kHeads) state[threadIdx.x] = {-INFINITY, 0.0f};
  __syncthreads();

  const auto* keys = static_cast<const Chunk<T>*>(a.k) + work.kv * chunks * a.L;
  const auto* values = static_cast<const Chunk<T>*>(a.v) + work.kv * chunks * a.L;
  const int rows = kThreads / chunks, row = threadIdx.x / chunks, column = threadIdx.x % chunks;
  float out[kHeads][X] = {};

  const auto find_scores = [&](int64_t s) {
    float score[kHeads] = {};
    const int64_t slot = s + threadIdx.x;
    const bool there = slot < work.to;
#pragma unroll 8
    for (int c = 0; c < chunks; ++c) {
      Chunk<T> key = {};
      if (there) key = keys[c * a.L + slot];
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int x = 0; x < X; ++x) score[h] += q[h * D + c * X + x] * to_float(key.v[x]);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float slope = a.slopes != nullptr && h < work.heads ? a.slopes[work.head0 + h] : 0.0f;
      weights[h * kTile + threadIdx.x] = there ? score[h] - slope * static_cast<float>(work.age(a, slot)) : -INFINITY;
    }
  };
  const auto soften = [&](int h) {
    float score[kTile / 32], top = state[h].largest, sum = 0;
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) top = Max::join(top, score[i] = weights[h * kTile + lane + 32 * i]);
    top = warp_reduce<Max>(top);
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const float w = softmax_weight(score[i], top);
      weights[h * kTile + lane + 32 * i] = w;
      sum += w;
    }
    sum = warp_reduce<Add>(sum);
    if (lane == 0) {
      fade[h] = softmax_weight(state[h].largest, top);
      state[h] = {top, state[h].total * fade[h] + sum};
    }
  };
  const auto add_values = [&](int64_t s) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int x = 0; x < X; ++x) out[h][x] *= fade[h];
    if (row >= rows) return;
    const int count = static_cast<int>(min(static_cast<int64_t>(kTile), work.to - s));
    const Chunk<T>* value = values + s * chunks + column;
#pragma unroll 8
    for (int i = row; i < count; i += rows) {
      const Chunk<T> v = value[i * chunks];
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int x = 0; x < X; ++x) out[h][x] += weights[h * kTile + i] * to_float(v.v[x]);
    }
  };

  for (int64_t s = work.from; s < work.to; s += kTile) {
    find_scores(s);
    __syncthreads();
    for (int h = warp; h < kHeads; h += kWarps) soften(h);
    __syncthreads();
    add_values(s);
    __syncthreads();
  }

  for (int h = 0; h < work.heads; ++h) {
#pragma unroll
    for (int i = 0; i < kHeads; ++i)  // h as a constant, or `out` would live in memory
#pragma unroll
      for (int x = 0; x < X; ++x)
        if (i == h && row < rows) weights[row * D + column * X + x] = out[i][x];
    __syncthreads();
    const int64_t at = work.row(a, h);
    if (parts.count > 1 && threadIdx.x == 0) parts.state_of(at, work.part) = state[h];
    for (int d = threadIdx.x; d < D; d += kThreads) {
      float sum = 0;
      for (int r = 0; r < rows; ++r) sum += weights[r * D + d];
      if (parts.count > 1)
        parts.sums_of(at, work.part, D)[d] = sum;
      else
        static_cast<T*>(a.o)[at * D + d] = from_float<T>(state[h].total == 0 ? 0.0f : sum / state[h].total);
    }
    __syncthreads();
  }
}

bool supports(const DecodeAttentionArgs&) { return true; }
int heads_of_block(const DecodeAttentionArgs& a) { return a.H == a.Hk ? 1 : 4; }
int64_t blocks_at_once(const DecodeAttentionArgs&) { return 6; }

template <typename T, int kHeads>
Status start(const DecodeAttentionArgs& a, const Parts& parts, unsigned blocks, Stream stream) {
  if (a.D > kX<T> * kThreads) return {"decode_attention: a head has more than 128 chunks of 16 bytes"};
  const int64_t floats = kHeads * a.D + std::max(kHeads * kTile, kThreads * kX<T>);
  return launch(plain_kernel<T, kHeads>, blocks, kThreads, floats * sizeof(float), stream, gpu().sm >= 90, a, parts);
}

Status start(const DecodeAttentionArgs& a, const Parts& parts, unsigned blocks, Stream stream) {
  return with_type(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return heads_of_block(a) == 1 ? start<T, 1>(a, parts, blocks, stream) : start<T, 4>(a, parts, blocks, stream);
  });
}

}  // namespace

const Kernel plain{supports, heads_of_block, blocks_at_once, start};

}  // namespace nybble::cuda::ring
