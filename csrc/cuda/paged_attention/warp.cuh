// Attention of a few queries over paged keys and values, for tensor cores. A warp has its own range of tiles
// (plan.cuh), its own ring of stages in shared memory, its own running maximum. Only copying may be shared
// (loader.cuh).
//
//   stage ring   tile j is computed    j + 1 ... have arrived or are on their way    the stage of j - 1 is filled anew
//   scores       S [tokens, rows] = K q^T        rows of queries are the 8 columns of each product
//   weights      P = exp2(S - largest); the turned registers of S are the second operand of
//   sums         O [channels, rows] += V^T P
//
// Codes are never scaled one by one: the scale of 32 channels multiplies their part of a score, and the weight of a
// token before it meets the values. Rotated keys meet a rotated q, since q . (R k) = (R q) . k; rotated values give a
// rotated sum, which `combine` turns back once.
#pragma once
#include "cuda/paged_attention/loader.cuh"
#include "cuda/paged_attention/queries.cuh"

namespace nybble::cuda::paged {

// Neighbouring words from an address that is a multiple of their size, or of 16.
template <int kWords>
__device__ inline void read_words(unsigned (&words)[kWords], const char* from) {
  if constexpr (kWords == 1) {
    words[0] = *reinterpret_cast<const unsigned*>(from);
  } else if constexpr (kWords == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    words[0] = v.x, words[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(from)[i];
      words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
  }
}

// Half of a warp's tile: scores of 16 tokens.
template <typename S, typename Storage>
__device__ inline void find_scores(float (&scores)[4], unsigned keys, const char* shared_scales, int first,
                                   const Queries<Storage, S::D>& q) {
  using Tile = typename S::Keys;
  const int lane = threadIdx.x % 32, g = lane / 4;
  const int token = first + lane % 16, low_unit = lane / 16;
  constexpr int kSums = 2;  // beside each other, as a product waits for the one it adds to
  float sums[kSums][4] = {};
  float scale[2][S::D / 32];
  if constexpr (Storage::kScaled) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned words[S::D / 64];
      read_words(words, shared_scales + (first + g + 8 * i) * Tile::kScaleBytes);
#pragma unroll
      for (int c = 0; c < S::D / 64; ++c) {
        const float2 two = __half22float2(reinterpret_cast<const __half2&>(words[c]));
        scale[i][2 * c] = two.x;
        scale[i][2 * c + 1] = two.y;
      }
    }
  }
#pragma unroll
  for (int u = 0; u < Tile::kUnits; u += 2) {
    unsigned r[4], a[Storage::kProducts][4];
    load_matrices<false>(r, keys + Tile::place(token, u + low_unit));
    Storage::keys(r, a);
    const int k = u / 2 * Storage::kProducts;
    if constexpr (Storage::kScaled) {
#pragma unroll
      for (int i = 0; i < Storage::kProducts; i += 2) {  // 32 channels
        float part[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) part[j] = q.zero[(k + i) / 2][j];
        multiply_add<typename Storage::T>(part, a[i], q.operand[k + i][0], q.operand[k + i][1]);
        multiply_add<typename Storage::T>(part, a[i + 1], q.operand[k + i + 1][0], q.operand[k + i + 1][1]);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[0][j] += part[j] * scale[j / 2][(k + i) / 2];
      }
    } else {
#pragma unroll
      for (int i = 0; i < Storage::kProducts; ++i)
        multiply_add<typename Storage::T>(sums[(k + i) % kSums], a[i], q.operand[k + i][0], q.operand[k + i][1]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) scores[j] = sums[0][j] + sums[1][j];
}

template <typename Storage, int D>
struct Sums {
  float values[D / 16][4] = {};
  float zero[Storage::kScaled ? D / 32 : 1][4] = {};  // what the codes' zero point takes off

  __device__ void fade(int c, float factor) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) values[k][c] *= factor, values[k][c + 2] *= factor;
    if constexpr (Storage::kScaled) {
#pragma unroll
      for (int k = 0; k < D / 32; ++k) zero[k][c] *= factor, zero[k][c + 2] *= factor;
    }
  }
  // Row g (g + 8 if high) of product k, column 2t + c.
  __device__ float get(int k, int c, int high) const {
    if constexpr (Storage::kScaled)
      return (values[k][c + 2 * high] + zero[k / 2][c + 2 * high]) * (high ? kCodeUnit / Storage::kHigh : kCodeUnit);
    else
      return values[k][c + 2 * high];
  }
};

// sums += V^T P over 16 tokens; weights are P's two registers.
template <typename S, typename Storage>
__device__ inline void add_values(Sums<Storage, S::D>& sums, unsigned values, const char* shared_scales, int first,
                                  const unsigned (&weights)[2]) {
  using Tile = typename S::Values;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const int token = first + lane % 8 + lane / 16 * 8, low_unit = lane / 8 % 2;
  unsigned scaled[S::D / 32][2];
  if constexpr (Storage::kScaled) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned words[S::D / 32];  // of two tokens
      read_words(words, shared_scales + (first + 2 * t + 8 * i) * Tile::kScaleBytes);
#pragma unroll
      for (int c = 0; c < S::D / 64; ++c)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const unsigned two = __byte_perm(words[c], words[c + S::D / 64], side ? 0x7632 : 0x5410);
          const __half2 v =
              __hmul2(reinterpret_cast<const __half2&>(two), reinterpret_cast<const __half2&>(weights[i]));
          scaled[2 * c + side][i] = reinterpret_cast<const unsigned&>(v);
        }
    }
    unsigned zeros[4];
    zero_points<Storage>(false, zeros);
#pragma unroll
    for (int c = 0; c < S::D / 32; ++c)
      multiply_add<typename Storage::T>(sums.zero[c], zeros, scaled[c][0], scaled[c][1]);
  }
#pragma unroll
  for (int u = 0; u < Tile::kUnits; u += 2) {
    unsigned r[4], a[Storage::kProducts][4];
    load_matrices<true>(r, values + Tile::place(token, u + low_unit));
    Storage::values(r, a);
#pragma unroll
    for (int i = 0; i < Storage::kProducts; ++i) {
      const int k = u / 2 * Storage::kProducts + i;
      if constexpr (Storage::kScaled)
        multiply_add<typename Storage::T>(sums.values[k], a[i], scaled[k / 2][0], scaled[k / 2][1]);
      else
        multiply_add<typename Storage::T>(sums.values[k], a[i], weights[0], weights[1]);
    }
  }
}

template <typename S, typename KeyStorage, typename ValueStorage, int kTeam>
__global__ void __launch_bounds__(256, 1)
    paged_attention_kernel(const __grid_constant__ PagedAttentionArgs a, const __grid_constant__ Plan plan) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) char shared[];
  constexpr int D = S::D, kHalves = S::kTokens / 16;
  using T = typename KeyStorage::T;
  // Weights times scales stay in the range of halves: of 8-bit codes a scale is up to 512, of 4-bit ones up to 8192.
  constexpr float kLift = ValueStorage::kScaled ? 3.0f : 0.0f;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t worker = static_cast<int64_t>(blockIdx.x) * plan.warps + warp;
  const int range = static_cast<int>(worker / plan.heads), virtual_head = static_cast<int>(worker % plan.heads);
  if (range >= (a.batch_invariant ? plan.ranges * a.B : plan.ranges)) {
    wait_for_previous();
    let_next_begin();
    return;
  }
  const int head = virtual_head / plan.blocks_of_head, first_row = virtual_head % plan.blocks_of_head * kRows;

  char* ring = shared + warp * S::kRing;
  char* room = shared + plan.warps * S::kRing + warp * S::kQuery;
  __shared__ uint64_t barriers[2 * S::kStages];  // full, then empty
  if constexpr (kTeam > 1) {
    if (threadIdx.x < 2 * S::kStages)
      init_barrier(shared_address(barriers + threadIdx.x), threadIdx.x < S::kStages ? 32 * kTeam : kTeam);
    __syncthreads();
  }
  Loader<S, kTeam> loader(a, plan, head, shared_address(ring), shared_address(barriers));
  // Lengths and pages are guessed to be what they are before the last kernel has ended, and read again after.
  Work work{};
  bool sure = !S::kGuess || a.B > 32;
  int64_t length = 0;
  if (!sure) {
    length = lane < a.B ? static_cast<const volatile int64_t*>(a.lengths)[lane] : 0;
    work = work_of(a, plan, range);
    loader.begin(work);
  }
  wait_for_previous();
  let_next_begin();
  // The block table on its way while the lengths are.
  if (sure && a.block_table != nullptr && a.B * a.block_table_stride <= 1024 && lane * 32 < a.B * a.block_table_stride)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(a.block_table + lane * 32));
  RawQueries<D> raw;
  constexpr int kFirst = S::kGuess ? 1 : S::kStages - 1;  // tiles asked for before the queries are laid out
  int more = S::kStages - 1 - kFirst;
  while (true) {
    if (sure) {
      work = work_of(a, plan, range);
      loader.begin(work);
    }
    const PageWindow window = loader.window();
    int64_t length_now = length;
    int page_now = window.page;
    if (!sure) {
      if (lane < a.B) length_now = static_cast<const volatile int64_t*>(a.lengths)[lane];
      if (window.b >= 0) page_now = window.read(a);
    }
    // Asked for before keys and values, behind which they would wait.
    if constexpr (S::kGuess) raw.load(a, plan, work.b, head, first_row);
#pragma unroll 1
    for (int i = 0; i < kFirst; ++i) loader.next();
    if (sure || __all_sync(0xffffffffu, length_now == length && page_now == window.page)) break;
    wait_for_copies<0>();
    __threadfence();
    sure = true;
  }

  int stage = 0, turn = 0;
  for (int left = work.count; left > 0; ++work.b, work.tile = 0) {
    const int length = length_of(a, plan, work.b);
    const Tiles tiles = tiles_of(a, plan, length);
    const int begin = tiles.first + work.tile, end = min(tiles.last, begin + left);
    if (begin >= end) {
      if (S::kGuess) raw.load(a, plan, min(work.b + 1, a.B - 1), head, first_row);
      continue;
    }
    left -= end - begin;

    if (!S::kGuess) raw.load(a, plan, work.b, head, first_row);
    const float missing =
        missing_pages(a, plan, work.b, max(begin * S::kTokens, first_seen(a, length)), min(end * S::kTokens, length));
    Queries<KeyStorage, D> q;
    q.load(raw, a, plan, head, first_row, length, room);
    for (; more > 0; --more) loader.next();
    Sums<ValueStorage, D> sums;
    float largest[2] = {-INFINITY, -INFINITY}, weight[2] = {};

    for (int tile = begin; tile < end; ++tile) {
      loader.wait(stage, turn);
      const char* at = ring + stage * S::kStage;
      const unsigned keys = shared_address(at), values = keys + S::Keys::kBytes;

      float scores[kHalves][4];
#pragma unroll
      for (int i = 0; i < kHalves; ++i) find_scores<S, KeyStorage>(scores[i], keys, at + S::Keys::scales(), 16 * i, q);
      loader.next();  // into the stage of the tile before, which every lane has left; meanwhile the products are made

      const int token = tile * S::kTokens + g;  // of scores[0][0], [0][1]; [.][2] and [.][3] are 8 further, [1] 16
      if (a.softcap > 0) {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) scores[i][j] = tanhf(scores[i][j] * q.cap[j % 2]) * (a.softcap * kLog2);
      } else {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) scores[i][j] *= q.factor[j % 2];
      }
      if (a.slopes != nullptr) {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            scores[i][j] += q.slope[j % 2] * static_cast<float>(token + 16 * i + j / 2 * 8 - q.place[j % 2]);
      }
      const int last = tile * S::kTokens + S::kTokens - 1;
      if (last > length - a.T || (a.window > 0 && last - S::kTokens < length - 1 - a.window)) {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int back = q.place[j % 2] - (token + 16 * i + j / 2 * 8);
            if (back < 0 || (a.window > 0 && back >= a.window)) scores[i][j] = -INFINITY;
          }
      }

      float top[2] = {largest[0], largest[1]};
#pragma unroll
      for (int i = 0; i < kHalves; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) top[j % 2] = fmaxf(top[j % 2], scores[i][j]);
      if (__any_sync(0xffffffffu, top[0] > largest[0] || top[1] > largest[1])) {  // rare after the first tiles
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          for (int offset = 4; offset < 32; offset *= 2)
            top[c] = fmaxf(top[c], __shfl_xor_sync(0xffffffffu, top[c], offset));
          const float fade = largest[c] == top[c] ? 1.0f : exp2f(largest[c] - top[c]);
          largest[c] = top[c];
          weight[c] *= fade;
          sums.fade(c, fade);
        }
      }
      float base[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) base[c] = largest[c] == -INFINITY ? 0.0f : largest[c] - kLift;
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          scores[i][j] = exp2_fast(scores[i][j] - base[j % 2]);
          weight[j % 2] += scores[i][j];
        }
        const unsigned weights[2] = {transposed(pack<T>(scores[i][0], scores[i][1])),
                                     transposed(pack<T>(scores[i][2], scores[i][3]))};
        add_values<S, ValueStorage>(sums, values, at + S::Keys::kBytes + S::Values::scales(), 16 * i, weights);
      }
      loader.release(stage);
      if (++stage == S::kStages) stage = 0, ++turn;
    }

    const int64_t slot = slot_of(a, range, work.b), row0 = static_cast<int64_t>(head) * plan.rows + first_row;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      for (int offset = 4; offset < 32; offset *= 2) weight[c] += __shfl_xor_sync(0xffffffffu, weight[c], offset);
      const int r = 2 * t + c;
      if (first_row + r >= plan.rows) continue;
      float* out = partial_values(a, slot, row0 + r);
#pragma unroll
      for (int k = 0; k < D / 16; ++k)
#pragma unroll
        for (int high = 0; high < 2; ++high) out[ValueStorage::channel_of_value(k, g, high)] = sums.get(k, c, high);
      if (g == 0) *partial_state(a, plan, slot, row0 + r) = {largest[c] - kLift, weight[c] + missing};
    }
    if (S::kGuess && left > 0) raw.load(a, plan, work.b + 1, head, first_row);
  }
#endif
}

template <typename KeyStorage, typename ValueStorage, int D>
Status launch_warps(const PagedAttentionArgs& a, const Plan& plan, Stream stream) {
  using S = Shape<KeyStorage, ValueStorage, D>;
  auto kernel = paged_attention_kernel<S, KeyStorage, ValueStorage, 1>;
  if constexpr (S::kTeam > 1)
    if (plan.team) kernel = paged_attention_kernel<S, KeyStorage, ValueStorage, S::kTeam>;
  const int bytes = plan.warps * S::kWarpBytes;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return status(error);
  const int64_t blocks = (workers_of(a, plan) + plan.warps - 1) / plan.warps;
  if (blocks > 0x7fffffff) return {"paged_attention: too many sequences and heads"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * plan.warps), bytes, stream, gpu().sm >= 90, a,
                plan);
}

template <typename KeyStorage, typename ValueStorage, int D>
constexpr Kernel warp_kernel() {
  using S = Shape<KeyStorage, ValueStorage, D>;
  return {launch_warps<KeyStorage, ValueStorage, D>, S::kTokens == 16 ? 4 : 5, S::kWarpBytes};
}

}  // namespace nybble::cuda::paged
