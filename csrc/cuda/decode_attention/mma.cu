// decode_attention on tensor cores (sm_80 and later), float16 and bfloat16: eight query heads of one KV head, or as
// many as there are, are the columns of both products, so that keys and values are read once for all of them.
//
// A block walks its slots in tiles of kTile with a running maximum. Of lane l, g = l / 4 and t = l % 4:
//
//   scores  [slots x D] [D x heads]   a warp has 32 slots. A lane reads 16 bytes of slots g and g + 8, of chunk 4 j +
//   t:
//                                     that order of the channels is as good as any, if the queries have it too
//   weights [heads][kTile]            in shared memory
//   out     [D x slots] [slots x heads]   a warp has a quarter of the channels; values were copied to shared memory
//                                         meanwhile, slot by slot, chunk c at c ^ (slot % 8): eight slots at once meet
//                                         no bank twice
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/number.cuh"
#include "cuda/decode_attention/ring.cuh"

namespace nybble::cuda::ring {
namespace {

constexpr int kHeads = 8;
constexpr int kWeightStride = kTile + 8;  // numbers: heads lie in different banks

template <int kD>
constexpr int kShared = kTile * kD * 2 + kHeads * kWeightStride * 2;
template <int kD>
constexpr int kBlocks = kD == 256 ? 3 : 5;  // at once, for the registers that leaves

// kD: D or more, a multiple of 64.
template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, kBlocks<kD>) mma_kernel(const DecodeAttentionArgs a,  // the op's arguments
                                                                    const Parts parts) {          // what blocks leave
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  constexpr int kX = 8;                    // channels of a chunk
  constexpr int kSteps = kD / 32;          // of the scores: four chunks each
  constexpr int kMine = kD / 16 / kWarps;  // a warp's tiles of 16 channels
  constexpr int kTileChunks = kD / kX;
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned value_tile = shared_address(shared);  // [kTile][kD]
  T* weights = reinterpret_cast<T*>(shared) + kTile * kD;
  __shared__ float of_warp[kWarps][kHeads];

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int chunks = static_cast<int>(a.D) / kX;
  wait_for_previous();
  let_next_begin();
  const Work work(a, parts.count, kHeads);
  const auto* keys = static_cast<const uint4*>(a.k) + work.kv * chunks * a.L;
  const auto* values = static_cast<const uint4*>(a.v) + work.kv * chunks * a.L;

  // Head g, chunks 4 j + t.
  unsigned q[kSteps][4] = {};
  if (g < work.heads) {
    const T* from = static_cast<const T*>(a.q) + work.b * a.q_stride_b + (work.head0 + g) * a.q_stride_h;
#pragma unroll
    for (int j = 0; j < kSteps; ++j)
      if (4 * j + t < chunks)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const T* two = from + (4 * j + t) * kX + 2 * i;
          q[j][i] = pack<T>(to_float(two[0]), to_float(two[1]));
        }
  }
  float slope[2] = {};  // of heads 2 t and 2 t + 1, like all that follows
  for (int i = 0; i < 2; ++i)
    if (a.slopes != nullptr && 2 * t + i < work.heads) slope[i] = a.slopes[work.head0 + 2 * t + i];
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {}, out[kMine][4] = {};

  for (int64_t s = work.from; s < work.to; s += kTile) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kTile), work.to - s));
#pragma unroll 4
    for (int i = threadIdx.x; i < kTile * kTileChunks; i += kThreads) {
      const int slot = i / kTileChunks, chunk = i % kTileChunks;
      const bool there = slot < count && chunk < chunks;
      copy_async<16>(value_tile + (slot * kTileChunks + (chunk ^ slot % 8)) * 16,
                     values + (there ? (s + slot) * chunks + chunk : 0), there);
    }
    commit_copies();

    float score[2][4] = {};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int slot = warp * 32 + m * 16 + g;
      uint4 key[kSteps][2];
#pragma unroll
      for (int j = 0; j < kSteps; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          key[j][i] = slot + 8 * i < count && 4 * j + t < chunks ? keys[(4 * j + t) * a.L + s + slot + 8 * i] : uint4{};
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        multiply_add<T>(score[m], {key[j][0].x, key[j][1].x, key[j][0].y, key[j][1].y}, q[j][0], q[j][1]);
        multiply_add<T>(score[m], {key[j][0].z, key[j][1].z, key[j][0].w, key[j][1].w}, q[j][2], q[j][3]);
      }
    }

    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int slot = warp * 32 + m * 16 + g + i / 2 * 8;
        score[m][i] = slot < count ? score[m][i] * a.scale : -INFINITY;
        if (a.slopes != nullptr) score[m][i] -= slope[i % 2] * static_cast<float>(work.age(a, s + slot));
        top[i % 2] = fmaxf(top[i % 2], score[m][i]);
      }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2)
        top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], offset));
      if (g == 0) of_warp[warp][2 * t + i] = top[i];
    }
    __syncthreads();
    float fade[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = largest[i];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) top[i] = fmaxf(top[i], of_warp[w][2 * t + i]);
      fade[i] = softmax_weight(largest[i], top[i]);
      largest[i] = top[i];
      total[i] *= fade[i];
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = softmax_weight(score[m][i], largest[i % 2]);
        total[i % 2] += weight;
        weights[(2 * t + i % 2) * kWeightStride + warp * 32 + m * 16 + g + i / 2 * 8] = from_float<T>(weight);
      }
    wait_for_copies<0>();
    __syncthreads();

#pragma unroll
    for (int d = 0; d < kMine; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[d][i] *= fade[i % 2];
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      const unsigned* w = reinterpret_cast<const unsigned*>(weights + g * kWeightStride + 16 * k + 2 * t);
      const unsigned w0 = w[0], w1 = w[4];
#pragma unroll
      for (int d = 0; d < kMine; ++d) {
        const int slot = 16 * k + lane / 16 * 8 + lane % 8, chunk = 2 * (warp * kMine + d) + lane / 8 % 2;
        unsigned v[4];
        load_matrices<true>(v, value_tile + (slot * kTileChunks + (chunk ^ slot % 8)) * 16);
        multiply_add<T>(out[d], v, w0, w1);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) total[i] += __shfl_xor_sync(0xffffffffu, total[i], offset);
    if (g == 0) of_warp[warp][2 * t + i] = total[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = 2 * t + i;
    if (head >= work.heads) continue;
    float all = 0;
    for (int w = 0; w < kWarps; ++w) all += of_warp[w][head];
    const int64_t at = work.row(a, head);
    if (parts.count > 1 && warp == 0 && g == 0) parts.state_of(at, work.part) = {largest[i], all};
    const float factor = all == 0 ? 0.0f : 1.0f / all;
#pragma unroll
    for (int d = 0; d < kMine; ++d)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int channel = (warp * kMine + d) * 16 + g + 8 * r;
        if (channel >= a.D) continue;
        if (parts.count > 1)
          parts.sums_of(at, work.part, static_cast<int>(a.D))[channel] = out[d][2 * r + i];
        else
          static_cast<T*>(a.o)[at * a.D + channel] = from_float<T>(out[d][2 * r + i] * factor);
      }
  }
#endif
}

bool supports(const DecodeAttentionArgs& a) { return gpu().sm >= 80 && a.dtype != DType::f32 && a.D <= 256; }
int heads_of_block(const DecodeAttentionArgs&) { return kHeads; }
int64_t blocks_at_once(const DecodeAttentionArgs& a) {
  if (a.D <= 128) return std::min(kBlocks<128>, gpu().shared_memory / kShared<128>);
  return std::min(kBlocks<256>, gpu().shared_memory / kShared<256>);
}

template <typename T, int kD>
Status start(const DecodeAttentionArgs& a, const Parts& parts, unsigned blocks, Stream stream) {
  const auto kernel = mma_kernel<T, kD>;
  const Status room = status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared<kD>));
  if (!room.ok()) return room;
  return launch(kernel, blocks, kThreads, kShared<kD>, stream, gpu().sm >= 90, a, parts);
}

template <typename T>
Status start(const DecodeAttentionArgs& a, const Parts& parts, unsigned blocks, Stream stream) {
  if (a.D <= 64) return start<T, 64>(a, parts, blocks, stream);
  if (a.D <= 128) return start<T, 128>(a, parts, blocks, stream);
  return start<T, 256>(a, parts, blocks, stream);
}

Status start(const DecodeAttentionArgs& a, const Parts& parts, unsigned blocks, Stream stream) {
  return a.dtype == DType::f16 ? start<__half>(a, parts, blocks, stream)
                               : start<__nv_bfloat16>(a, parts, blocks, stream);
}

}  // namespace

const Kernel mma{supports, heads_of_block, blocks_at_once, start};

}  // namespace nybble::cuda::ring
