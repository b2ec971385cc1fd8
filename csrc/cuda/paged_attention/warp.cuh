// Attention of a few queries over paged keys and values, for tensor cores. A warp works alone: its own range of tiles
// (plan.cuh), its own ring of stages in shared memory, its own running maximum; no barrier of the block is needed.
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
#include "cuda/common/async_copy.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/rotate.cuh"
#include "cuda/paged_attention/storage.cuh"

namespace nybble::cuda::paged {

// Sizes of one kernel, known to the host too.
template <typename KeyStorage, typename ValueStorage, int kD>
struct Shape {
  static constexpr int D = kD;
  static constexpr int kTokens = D / KeyStorage::kUnit > 8 ? 16 : 32;  // 32 where a row is up to 128 bytes
  using Keys = Tile<KeyStorage, D, kTokens>;
  using Values = Tile<ValueStorage, D, kTokens>;
  static constexpr int kStage = Keys::kBytes + Values::kBytes;
  static constexpr int kWanted = 26624 / kStage;  // 8 warps then fill the 227 KB of an SM
  static constexpr int kStages = kWanted < 3 ? 3 : kWanted > 5 ? 5 : kWanted;
  static constexpr int kQuery = kRows * D * 2;
  static constexpr int kWarpBytes = kStages * kStage + kQuery;
};

constexpr float kLog2 = 1.44269504f;  // of e: exponents are to base 2

// 16 bytes that are NaN in every storage: what a page that does not exist holds.
__device__ const uint4 kNoPage = {~0u, ~0u, ~0u, ~0u};

// Fills stages with tiles, one after the other, across sequences.
template <typename S>
class Loader {
 public:
  __device__ Loader(const PagedAttentionArgs& a, const Plan& plan, const Work& work, int head, unsigned ring)
      : a_(a), plan_(plan), ring_(ring), head_(head), b_(work.b), left_(work.count) {
    if (left_ > 0) {
      enter();
      tile_ += work.tile;
      find_pages();
    }
  }

  // Starts the next tile's copies, or nothing when there is none; closes the group either way.
  __device__ void next() {
    if (left_ > 0) {
      copy_tile();
      ++tile_;
      if (--left_ > 0) {
        while (tile_ == end_) {
          ++b_;
          enter();
        }
        find_pages();
      }
      stage_ = stage_ + 1 == S::kStages ? 0 : stage_ + 1;
    }
    commit_copies();
  }

 private:
  __device__ void enter() {
    length_ = length_of(a_, b_);
    const Tiles tiles = tiles_of(a_, plan_, length_);
    tile_ = tiles.first;
    end_ = tiles.last;
  }

  // A lane looks up the page of one token, a tile before it is needed.
  __device__ void find_pages() {
    const int lane = threadIdx.x % 32, token = tile_ * S::kTokens + lane, size = static_cast<int>(a_.page);
    there_ = lane < S::kTokens && token < length_ && token >= first_seen(a_, length_);
    page_ = 0;
    slot_ = token;
    if (a_.block_table == nullptr) {
      page_ = static_cast<int>(b_);
    } else if (there_) {
      page_ = a_.block_table[b_ * a_.block_table_stride + token / size];
      slot_ = token % size;
    }
  }

  __device__ void copy_tile() {
    const unsigned to = ring_ + stage_ * S::kStage;
    const bool real = page_ >= 0 && page_ < a_.P;
    copy<typename S::Keys>(a_.keys, to, real);
    copy<typename S::Values>(a_.values, to + S::Keys::kBytes, real);
  }

  template <typename Tile>
  __device__ void copy(const KvPages& kv, unsigned to, bool real) const {
    constexpr unsigned kAbsent = ~0u, kNan = ~0u - 1;  // places of a token that is not there, or whose page is not
    constexpr int kPieces = S::kTokens * Tile::kUnits;
    static_assert(kPieces % 32 == 0, "every lane copies alike");
    const int lane = threadIdx.x % 32;
    // In units of 16 bytes, so that 32 bits reach through 64 GB.
    const int shift = kv.kind == KvKind::plain ? 1 : 0;
    const int64_t first = page_ * kv.stride_page + slot_ * kv.stride_slot + head_ * kv.stride_head;
    const unsigned mine = !there_ ? kAbsent : !real ? kNan : static_cast<unsigned>((first << shift) / 16);
    const char* data = static_cast<const char*>(kv.data);
#pragma unroll
    for (int i = 0; i < kPieces / 32; ++i) {
      const int piece = i * 32 + lane, token = piece / Tile::kUnits, unit = piece % Tile::kUnits;
      const unsigned at = __shfl_sync(0xffffffffu, mine, token);
      const void* from =
          at == kNan ? static_cast<const void*>(&kNoPage) : data + (static_cast<int64_t>(at) + unit) * 16;
      copy_async<16>(to + Tile::place(token, unit), from, at != kAbsent);
    }
    if constexpr (Tile::kScaleBytes > 0) {
      const __half* scales = static_cast<const __half*>(kv.scales) + page_ * kv.scales_page + slot_ * kv.scales_slot +
                             head_ * kv.scales_head;
      const void* from = real ? static_cast<const void*>(scales) : &kNoPage;
      if (lane < S::kTokens)
        copy_async<Tile::kScaleBytes>(to + Tile::scales() + lane * Tile::kScaleBytes, from, there_);
    }
  }

  const PagedAttentionArgs& a_;
  const Plan& plan_;
  unsigned ring_;
  int head_;
  int64_t b_;
  int left_, stage_ = 0, length_ = 0, tile_ = 0, end_ = 0, page_ = 0, slot_ = 0;
  bool there_ = false;
};

// Eight query rows as the second operand of K q^T, and what each lane knows of its two rows 2t, 2t + 1.
template <typename KeyStorage, int D>
struct Queries {
  unsigned operand[D / 16][2];
  float factor[2];  // of a score, to base 2
  float cap[2];     // softcap of a score: factor of what goes into tanh
  float slope[2];   // to base 2
  int place[2];     // position of the query

  // Rows first ... first + 7 of KV head `head`; rows past the last are zeros. `room`: shared memory of this warp.
  __device__ void load(const PagedAttentionArgs& a, int rows, int64_t b, int head, int first, int length, char* room) {
    using T = typename KeyStorage::T;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, group = static_cast<int>(a.H / a.Hk);
    T* shared = reinterpret_cast<T*>(room);
    __syncwarp();
    for (int r = 0; r < kRows; ++r) {
      const int row = first + r, h = head * group + row % group, step = row / group;
      float v[(D + 63) / 64][2], back = 1.0f;
      const int64_t base = b * a.q_stride_b + step * a.q_stride_t + h * a.q_stride_h;
#pragma unroll
      for (int i = 0; i < (D + 63) / 64; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = 64 * i + 2 * lane + e;
          v[i][e] = row < rows && d < D ? element(a, base + d) : 0.0f;
        }
      if constexpr (KeyStorage::kScaled) {
#pragma unroll
        for (int i = 0; i < D / 64; ++i) rotate(v[i]);
      }
      if constexpr (!KeyStorage::kNative) {
        // Halves of any size of q: the row times a power of two, which its factor takes back.
        float largest = 0;
#pragma unroll
        for (int i = 0; i < (D + 63) / 64; ++i) largest = fmaxf(largest, fmaxf(fabsf(v[i][0]), fabsf(v[i][1])));
        largest = warp_reduce<Max>(largest);
        const int power = largest > 0 && largest < INFINITY ? ilogbf(largest) : 0;
        back = exp2f(static_cast<float>(power));
#pragma unroll
        for (int i = 0; i < (D + 63) / 64; ++i)
#pragma unroll
          for (int e = 0; e < 2; ++e) v[i][e] *= 1.0f / back;
        if constexpr (KeyStorage::kScaled) back *= 1.0f / 32;
      }
#pragma unroll
      for (int i = 0; i < (D + 63) / 64; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = 64 * i + 2 * lane + e;
          if (d < D) shared[r * D + d] = from_float<T>(v[i][e]);
        }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (r != 2 * t + c) continue;
        factor[c] = a.scale * back * kLog2;
        cap[c] = a.softcap > 0 ? a.scale * back / a.softcap : 0.0f;
        slope[c] = a.slopes != nullptr && row < rows ? a.slopes[h] * kLog2 : 0.0f;
        place[c] = row < rows ? length - static_cast<int>(a.T) + step : length - 1;
      }
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        T pair[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) pair[e] = shared[g * D + KeyStorage::channel_of_key(k, j, t, e)];
        operand[k][j] = reinterpret_cast<const unsigned&>(pair);
      }
  }

  __device__ static float element(const PagedAttentionArgs& a, int64_t i) {
    return a.dtype == DType::bf16 ? to_float(static_cast<const __nv_bfloat16*>(a.q)[i])
                                  : to_float(static_cast<const __half*>(a.q)[i]);
  }
};

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
                                   const unsigned (&q)[S::D / 16][2]) {
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
        float part[4] = {};
        multiply_add<typename Storage::T>(part, a[i], q[k + i][0], q[k + i][1]);
        multiply_add<typename Storage::T>(part, a[i + 1], q[k + i + 1][0], q[k + i + 1][1]);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[0][j] += part[j] * scale[j / 2][(k + i) / 2];
      }
    } else {
#pragma unroll
      for (int i = 0; i < Storage::kProducts; ++i)
        multiply_add<typename Storage::T>(sums[(k + i) % kSums], a[i], q[k + i][0], q[k + i][1]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) scores[j] = sums[0][j] + sums[1][j];
}

// sums += V^T P over 16 tokens; weights are P's two registers.
template <typename S, typename Storage>
__device__ inline void add_values(float (&sums)[S::D / 16][4], unsigned values, const char* shared_scales, int first,
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
        multiply_add<typename Storage::T>(sums[k], a[i], scaled[k / 2][0], scaled[k / 2][1]);
      else
        multiply_add<typename Storage::T>(sums[k], a[i], weights[0], weights[1]);
    }
  }
}

template <typename S, typename KeyStorage, typename ValueStorage>
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
  wait_for_previous();
  let_next_begin();
  if (range >= plan.ranges) return;
  const int head = virtual_head / plan.blocks_of_head, first_row = virtual_head % plan.blocks_of_head * kRows;

  char* ring = shared + warp * S::kStages * S::kStage;
  char* room = shared + plan.warps * S::kStages * S::kStage + warp * S::kQuery;
  Work work = work_of(a, plan, range);
  Loader<S> loader(a, plan, work, head, shared_address(ring));
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) loader.next();

  int stage = 0;
  for (int left = work.count; left > 0; ++work.b, work.tile = 0) {
    const int length = length_of(a, work.b);
    const Tiles tiles = tiles_of(a, plan, length);
    const int begin = tiles.first + work.tile, end = min(tiles.last, begin + left);
    if (begin >= end) continue;
    left -= end - begin;

    Queries<KeyStorage, D> q;
    q.load(a, plan.rows, work.b, head, first_row, length, room);
    float sums[D / 16][4] = {}, largest[2] = {-INFINITY, -INFINITY}, weight[2] = {};

    for (int tile = begin; tile < end; ++tile) {
      wait_for_copies<S::kStages - 2>();
      __syncwarp();
      loader.next();  // into the stage of the tile before, which every lane has left
      const char* at = ring + stage * S::kStage;
      const unsigned keys = shared_address(at), values = keys + S::Keys::kBytes;
      stage = stage + 1 == S::kStages ? 0 : stage + 1;

      float scores[kHalves][4];
#pragma unroll
      for (int i = 0; i < kHalves; ++i)
        find_scores<S, KeyStorage>(scores[i], keys, at + S::Keys::scales(), 16 * i, q.operand);

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
#pragma unroll
          for (int k = 0; k < D / 16; ++k) sums[k][c] *= fade, sums[k][c + 2] *= fade;
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
    }

    const int64_t slot = slot_of(plan, range, work.b), row0 = static_cast<int64_t>(head) * plan.rows + first_row;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      for (int offset = 4; offset < 32; offset *= 2) weight[c] += __shfl_xor_sync(0xffffffffu, weight[c], offset);
      const int r = 2 * t + c;
      if (first_row + r >= plan.rows) continue;
      float* out = partial_values(a, slot, row0 + r);
#pragma unroll
      for (int k = 0; k < D / 16; ++k)
#pragma unroll
        for (int high = 0; high < 2; ++high) out[ValueStorage::channel_of_value(k, g, high)] = sums[k][c + 2 * high];
      if (g == 0) *partial_state(a, plan, slot, row0 + r) = {largest[c] - kLift, weight[c]};
    }
  }
#endif
}

template <typename KeyStorage, typename ValueStorage, int D>
Status launch_warps(const PagedAttentionArgs& a, const Plan& plan, Stream stream) {
  using S = Shape<KeyStorage, ValueStorage, D>;
  const auto kernel = paged_attention_kernel<S, KeyStorage, ValueStorage>;
  const int bytes = plan.warps * S::kWarpBytes;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return status(error);
  const int64_t blocks = (static_cast<int64_t>(plan.heads) * plan.ranges + plan.warps - 1) / plan.warps;
  if (blocks > 0x7fffffff) return {"paged_attention: too many sequences and heads"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * plan.warps), bytes, stream, gpu().sm >= 90, a,
                plan);
}

template <typename KeyStorage, typename ValueStorage, int D>
constexpr Kernel warp_kernel() {
  using S = Shape<KeyStorage, ValueStorage, D>;
  return {launch_warps<KeyStorage, ValueStorage, D>, S::kTokens, S::kWarpBytes};
}

}  // namespace nybble::cuda::paged
