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
  static constexpr bool kBytes = KeyStorage::kUnit > 8;
#ifndef ATTN_WARPS
#define ATTN_WARPS 8
#define ATTN_KT 32
#endif
  static constexpr int kWarps = kBytes && D <= 128 ? ATTN_WARPS : 8;
  static constexpr int kTokens = D / KeyStorage::kUnit > 8 || D > 128 ? 16 : kBytes ? ATTN_KT : 32;
  using Keys = Tile<KeyStorage, D, kTokens>;
  using Values = Tile<ValueStorage, D, kTokens>;
  static constexpr int kStage = Keys::kBytes + Values::kBytes;
  static constexpr int kQuery = kRows * D * 2;
  static constexpr int kWanted = (232448 / kWarps - kQuery) / kStage;
  static constexpr int kStages = kWanted < 3 ? 3 : kWanted > 5 ? 5 : kWanted;
  static constexpr int kWarpBytes = kStages * kStage + kQuery;
};

constexpr float kLog2 = 1.44269504f;  // of e: exponents are to base 2

// NaN if a page of tokens [begin, end) of sequence b does not exist, else 0. The whole warp calls it.
__device__ inline float missing_pages(const PagedAttentionArgs& a, const Plan& plan, int64_t b, int begin, int end) {
  if (a.block_table == nullptr) return 0.0f;
  const int last = page_of(a, plan, end - 1);
  bool missing = false;
#pragma unroll 1
  for (int i = page_of(a, plan, begin) + static_cast<int>(threadIdx.x % 32); i <= last; i += 32)
    missing |= static_cast<unsigned>(a.block_table[b * a.block_table_stride + i]) >= static_cast<unsigned>(a.P);
  return __any_sync(0xffffffffu, missing) ? NAN : 0.0f;
}

// Where a lane finds its pieces of keys or of values, and where they go in a stage. A tile's units are dealt out to the
// lanes in turn: neighbours read neighbours.
template <typename Tile, int kTokens>
class Source {
 public:
  __device__ Source(const KvPages& kv, const Reach& reach, int head) {
    const int lane = threadIdx.x % 32;
    data_ =
        static_cast<const char*>(kv.data) + (static_cast<uint64_t>(head) * reach.head + kSteady * (lane % kUnits)) * 16;
    scales_ = static_cast<const char*>(kv.scales) + static_cast<uint64_t>(head) * reach.scales_head * Tile::kScaleBytes;
  }

  // `page`, `slot`: of the token that this lane stands for; not `there`: zeros.
  __device__ void copy(const Reach& reach, int page, int slot, bool there, unsigned to) const {
    constexpr unsigned kAbsent = ~0u;
    constexpr int kPieces = kTokens * kUnits / 32;  // of a lane
    static_assert(kTokens * kUnits % 32 == 0, "every lane copies alike");
    const int lane = threadIdx.x % 32;
    const unsigned mine = there ? page * reach.page + slot * reach.slot : kAbsent;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * 32 + lane, token = piece / kUnits, unit = piece % kUnits;
      const unsigned from = __shfl_sync(0xffffffffu, mine, token);
      copy_async<16>(to + Tile::place(token, unit), data_ + (from + (kSteady ? 0ull : unit)) * 16ull, from != kAbsent);
    }
    if constexpr (Tile::kScaleBytes > 0) {
      const unsigned from = page * reach.scales_page + slot * reach.scales_slot;
      if (lane < kTokens)
        copy_async<Tile::kScaleBytes>(to + Tile::scales() + lane * Tile::kScaleBytes,
                                      scales_ + static_cast<uint64_t>(from) * Tile::kScaleBytes, there);
    }
  }

 private:
  static constexpr int kUnits = Tile::kUnits;
  static constexpr bool kSteady = 32 % kUnits == 0;  // a lane's pieces are the same unit of different tokens
  const char *data_, *scales_;
};

// Fills stages with tiles, one after the other, across sequences.
template <typename S>
class Loader {
 public:
  __device__ Loader(const PagedAttentionArgs& a, const Plan& plan, const Work& work, int head, unsigned ring)
      : a_(a),
        plan_(plan),
        keys_(a.keys, plan.keys, head),
        values_(a.values, plan.values, head),
        ring_(ring),
        b_(work.b),
        left_(work.count) {
    if (left_ > 0) {
      enter();
      tile_ += work.tile;
      find_page();
    }
  }

  // Starts the next tile's copies, or nothing when there is none; closes the group either way.
  __device__ void next() {
    if (left_ > 0) {
      const bool there = there_ && static_cast<unsigned>(page_) < static_cast<unsigned>(a_.P);
      const unsigned to = ring_ + stage_ * S::kStage;
      keys_.copy(plan_.keys, page_, slot_, there, to);
      values_.copy(plan_.values, page_, slot_, there, to + S::Keys::kBytes);
      stage_ = stage_ + 1 == S::kStages ? 0 : stage_ + 1;
      ++tile_;
      if (--left_ > 0) {
        while (tile_ == end_) {
          ++b_;
          enter();
        }
        find_page();
      }
    }
    commit_copies();
  }

 private:
  __device__ void enter() {
    length_ = length_of(a_, plan_, b_);
    seen_ = first_seen(a_, length_);
    const Tiles tiles = tiles_of(a_, plan_, length_);
    tile_ = tiles.first;
    end_ = tiles.last;
    pages_ = a_.block_table + b_ * a_.block_table_stride;
  }

  // A lane looks up the page of one token, a tile before it is needed.
  __device__ void find_page() {
    const int lane = threadIdx.x % 32, token = tile_ * S::kTokens + lane;
    there_ = lane < S::kTokens && token < length_ && token >= seen_;
    page_ = static_cast<int>(b_);
    slot_ = token;
    if (a_.block_table == nullptr) return;
    const int i = page_of(a_, plan_, token);
    if (there_) page_ = pages_[i];
    slot_ = token - i * static_cast<int>(a_.page);
  }

  const PagedAttentionArgs& a_;
  const Plan& plan_;
  const Source<typename S::Keys, S::kTokens> keys_;
  const Source<typename S::Values, S::kTokens> values_;
  const unsigned ring_;
  const int32_t* pages_ = nullptr;
  int64_t b_;
  int left_, stage_ = 0, length_ = 0, seen_ = 0, tile_ = 0, end_ = 0, page_ = 0, slot_ = 0;
  bool there_ = false;
};

// Rows first ... first + 7 of KV head `head` as they lie in memory, rows past the last as zeros. A lane has channels 2l
// and 2l + 1 of each group of 64. Loaded on their own, so that all of it is on its way at once.
template <int D>
struct RawQueries {
  static constexpr int kGroups = (D + 63) / 64;
  unsigned bits[kRows][kGroups];

  __device__ RawQueries(const PagedAttentionArgs& a, const Plan& plan, int64_t b, int head, int first) {
    const int lane = threadIdx.x % 32;
    int step = first / plan.group, inside = first - step * plan.group;
    const char* q = static_cast<const char*>(a.q) +
                    2 * (b * a.q_stride_b + step * a.q_stride_t + (head * plan.group + inside) * a.q_stride_h);
    const auto take = [&](int r) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        bits[r][i] = first + r < plan.rows && (D % 64 == 0 || 64 * i + 2 * lane < D)
                         ? *reinterpret_cast<const unsigned*>(q + 128 * i + 4 * lane)
                         : 0u;
      q += 2 * a.q_stride_h;
      if (++inside == plan.group) inside = 0, q += 2 * (a.q_stride_t - plan.group * a.q_stride_h);
    };
#pragma unroll
    for (int r = 0; r < kRows / 2; ++r) take(r);
#pragma unroll
    for (int r = kRows / 2; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kGroups; ++i) bits[r][i] = 0u;
    if (plan.rows - first > kRows / 2) {
#pragma unroll
      for (int r = kRows / 2; r < kRows; ++r) take(r);
    }
  }
};

// Eight query rows as the second operand of K q^T, and what each lane knows of its two rows 2t, 2t + 1.
template <typename KeyStorage, int D>
struct Queries {
  static constexpr int kGroups = RawQueries<D>::kGroups;
  unsigned operand[D / 16][2];
  float zero[KeyStorage::kScaled ? D / 32 : 1][4];  // what every 32 channels of a score begin with
  float factor[2];                                  // of a score, to base 2
  float cap[2];                                     // softcap of a score: factor of what goes into tanh
  float slope[2];                                   // to base 2
  int place[2];                                     // position of the query

  // `room`: shared memory of this warp.
  __device__ void load(const RawQueries<D>& raw, const PagedAttentionArgs& a, const Plan& plan, int head, int first,
                       int length, char* room) {
    using T = typename KeyStorage::T;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned* bits = reinterpret_cast<unsigned*>(room);  // pairs, first as they lie in memory, then of T
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        if (D % 64 == 0 || 64 * i + 2 * lane < D) bits[r * (D / 2) + 32 * i + lane] = raw.bits[r][i];
    float back[2] = {1.0f, 1.0f};
    if constexpr (!KeyStorage::kNative) {
#pragma unroll 1
      for (int r0 = 0; r0 < kRows && first + r0 < plan.rows; r0 += 4) {
#pragma unroll
        for (int r = r0; r < r0 + 4; ++r) {
          const float one = prepare_row(a.dtype, bits + r * (D / 2));
          if (r == 2 * t) back[0] = one;
          if (r == 2 * t + 1) back[1] = one;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = first + 2 * t + c, step = row / plan.group, h = head * plan.group + row - step * plan.group;
      const bool real = row < plan.rows;
      factor[c] = a.scale * back[c] * kLog2;
      cap[c] = a.softcap > 0 ? a.scale * back[c] / a.softcap : 0.0f;
      slope[c] = a.slopes != nullptr && real ? a.slopes[h] * kLog2 : 0.0f;
      place[c] = real ? length - static_cast<int>(a.T) + step : length - 1;
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < D / 16; k += KeyStorage::kProducts) {
      unsigned some[KeyStorage::kProducts][2];
      KeyStorage::queries(bits + g * (D / 2) + 8 * k, t, some);
#pragma unroll
      for (int i = 0; i < KeyStorage::kProducts; ++i) operand[k + i][0] = some[i][0], operand[k + i][1] = some[i][1];
    }
    if constexpr (KeyStorage::kScaled) {
      unsigned zeros[4];
      zero_points<KeyStorage>(true, zeros);
#pragma unroll
      for (int c = 0; c < D / 32; ++c) {
        for (float& v : zero[c]) v = 0.0f;
        multiply_add<T>(zero[c], zeros, operand[2 * c][0], operand[2 * c][1]);
        multiply_add<T>(zero[c], zeros, operand[2 * c + 1][0], operand[2 * c + 1][1]);
      }
    }
  }

  // Row r of the eight: rotated and made of T's size where the keys are; what its lanes need to know of it.
  __device__ void prepare_row(const PagedAttentionArgs& a, int rows, int head, int row, int r, int length,
                              const unsigned short* bits, typename KeyStorage::T* shared) {
    const int lane = threadIdx.x % 32, t = lane % 4, group = static_cast<int>(a.H / a.Hk);
    const int h = head * group + row % group, step = row / group;
    const auto at = [&](int i, int e) { return r * D + 64 * i + 2 * lane + e; };
    const auto inside = [&](int i) { return D % 64 == 0 || 64 * i + 2 * lane < D; };
    float back = 1.0f;
    if constexpr (!KeyStorage::kNative) {
      float v[kGroups][2], largest = 0;
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) v[i][e] = inside(i) ? number(a.dtype, bits[at(i, e)]) : 0.0f;
        if constexpr (KeyStorage::kScaled) rotate(v[i]);
        largest = fmaxf(largest, fmaxf(fabsf(v[i][0]), fabsf(v[i][1])));
      }
      largest = warp_reduce<Max>(largest);
      // Halves of any size of q: the row times a power of two, so that its largest is near 2^8; `factor` takes it back.
      const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
      const int power = exponent < 9 || exponent == 255 ? 135 : exponent;
      back = __uint_as_float(static_cast<unsigned>(power - 8) << 23);
      const float forth = __uint_as_float(static_cast<unsigned>(262 - power) << 23);
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (inside(i)) shared[at(i, e)] = from_float<typename KeyStorage::T>(v[i][e] * forth);
      if constexpr (KeyStorage::kScaled) back *= kCodeUnit / 32;
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (r != 2 * t + c || row >= rows) continue;
      factor[c] = a.scale * back * kLog2;
      cap[c] = a.softcap > 0 ? a.scale * back / a.softcap : 0.0f;
      slope[c] = a.slopes != nullptr ? a.slopes[h] * kLog2 : 0.0f;
      place[c] = length - static_cast<int>(a.T) + step;
    }
  }

  __device__ static float2 numbers(DType dtype, unsigned bits) {
    if (dtype == DType::bf16) return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
    return __half22float2(reinterpret_cast<const __half2&>(bits));
  }

  // A row of pairs in shared memory: rotated if the keys are, and times a power of two that makes halves of it whatever
  // its size. Returns what takes that back.
  __device__ static float prepare_row(DType dtype, unsigned* pairs) {
    const int lane = threadIdx.x % 32;
    float v[kGroups][2], largest = 0;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const bool inside = D % 64 == 0 || 64 * i + 2 * lane < D;
      const float2 two = numbers(dtype, inside ? pairs[32 * i + lane] : 0u);
      v[i][0] = two.x, v[i][1] = two.y;
      if constexpr (KeyStorage::kScaled) rotate(v[i]);
      largest = fmaxf(largest, fmaxf(fabsf(v[i][0]), fabsf(v[i][1])));
    }
    largest = warp_reduce<Max>(largest);
    const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
    const int power = exponent < 9 || exponent == 255 ? 135 : exponent;  // the largest will be near 2^8
    const float forth = __uint_as_float(static_cast<unsigned>(262 - power) << 23);
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
      if (D % 64 == 0 || 64 * i + 2 * lane < D) pairs[32 * i + lane] = pack<__half>(v[i][0] * forth, v[i][1] * forth);
    const float back = __uint_as_float(static_cast<unsigned>(power - 8) << 23);
    return KeyStorage::kScaled ? back * (kCodeUnit / 32) : back;
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

template <typename S, typename KeyStorage, typename ValueStorage>
__global__ void __launch_bounds__(32 * S::kWarps, 1)
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
  if (range >= (a.batch_invariant ? plan.ranges * a.B : plan.ranges)) return;
  const int head = virtual_head / plan.blocks_of_head, first_row = virtual_head % plan.blocks_of_head * kRows;

  char* ring = shared + warp * S::kStages * S::kStage;
  char* room = shared + plan.warps * S::kStages * S::kStage + warp * S::kQuery;
  // The block table on its way while the lengths are.
  if (a.block_table != nullptr && a.B * a.block_table_stride <= 1024 && lane * 32 < a.B * a.block_table_stride)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(a.block_table + lane * 32));
  Work work = work_of(a, plan, range);
  Loader<S> loader(a, plan, work, head, shared_address(ring));
#pragma unroll 1
  for (int i = 0; i < S::kStages - 1; ++i) loader.next();

  int stage = 0;
  for (int left = work.count; left > 0; ++work.b, work.tile = 0) {
    const int length = length_of(a, plan, work.b);
    const Tiles tiles = tiles_of(a, plan, length);
    const int begin = tiles.first + work.tile, end = min(tiles.last, begin + left);
    if (begin >= end) continue;
    left -= end - begin;

    const RawQueries<D> raw(a, plan, work.b, head, first_row);
    const float missing =
        missing_pages(a, plan, work.b, max(begin * S::kTokens, first_seen(a, length)), min(end * S::kTokens, length));
    Queries<KeyStorage, D> q;
    q.load(raw, a, plan, head, first_row, length, room);
    Sums<ValueStorage, D> sums;
    float largest[2] = {-INFINITY, -INFINITY}, weight[2] = {};

    for (int tile = begin; tile < end; ++tile) {
      wait_for_copies<S::kStages - 2>();
      __syncwarp();
      const char* at = ring + stage * S::kStage;
      const unsigned keys = shared_address(at), values = keys + S::Keys::kBytes;
      stage = stage + 1 == S::kStages ? 0 : stage + 1;

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
  const int64_t blocks = (workers_of(a, plan) + plan.warps - 1) / plan.warps;
  if (blocks > 0x7fffffff) return {"paged_attention: too many sequences and heads"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * plan.warps), bytes, stream, gpu().sm >= 90, a,
                plan);
}

template <typename KeyStorage, typename ValueStorage, int D>
constexpr Kernel warp_kernel() {
  using S = Shape<KeyStorage, ValueStorage, D>;
  return {launch_warps<KeyStorage, ValueStorage, D>, S::kTokens == 16 ? 4 : 5, S::kWarpBytes, S::kWarps};
}

}  // namespace nybble::cuda::paged
