// Eight rows of queries made the second operand of K q^T: in the order of channels that the keys' storage has, rotated
// if the keys are, as halves if the keys are bytes.
#pragma once
#include "cuda/common/kept.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/rotate.cuh"
#include "cuda/paged_attention/storage.cuh"

namespace nybble::cuda::paged {

constexpr float kLog2 = 1.44269504f;  // of e: exponents are to base 2

// Where a lane finds its part of rows first ... first + 7 of KV head `head`. Found on its own, before rows may be read.
struct QueryRows {
  const char* at[kRows];

  __device__ QueryRows(const PagedAttentionArgs& a, const Plan& plan, int64_t b, int head, int first) {
    int step = first / plan.group, inside = first - step * plan.group;
    const char* q = static_cast<const char*>(a.q) + 4 * (threadIdx.x % 32) +
                    2 * (b * a.q_stride_b + step * a.q_stride_t + (head * plan.group + inside) * a.q_stride_h);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      at[r] = q;
      q += 2 * a.q_stride_h;
      if (++inside == plan.group) inside = 0, q += 2 * (a.q_stride_t - plan.group * a.q_stride_h);
    }
  }
  __device__ void keep() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) at[r] = kept(at[r]);
  }
};

// Rows first ... first + 7 of KV head `head` as they lie in memory, rows past the last as zeros. A lane has channels 2l
// and 2l + 1 of each group of 64. Loaded on their own, so that all of it is on its way at once.
template <int D>
struct RawQueries {
  static constexpr int kGroups = (D + 63) / 64;
  unsigned bits[kRows][kGroups];

  __device__ void load(const PagedAttentionArgs& a, const Plan& plan, int64_t b, int head, int first) {
    load(QueryRows(a, plan, b, head, first), plan, first);
  }
  __device__ void load(const QueryRows& rows, const Plan& plan, int first) {
    const int lane = threadIdx.x % 32;
    const auto take = [&](int r) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        bits[r][i] = first + r < plan.rows && (D % 64 == 0 || 64 * i + 2 * lane < D)
                         ? *reinterpret_cast<const unsigned*>(rows.at[r] + 128 * i)
                         : 0u;
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

}  // namespace nybble::cuda::paged
