// Keys and values to codes of 4 or 8 bits and back (ops/kv.h), every step rounded to half as written there.
//
//   a group  [ e0 ... e7 | e8 ... e15 | ... | e56 ... e63 ]  8 lanes of a warp, 8 elements each as 4 (even, odd) pairs
//   u = H u    steps 2 and 4 between a lane's pairs; 8, 16 and 32 with lanes l ^ 1, l ^ 2 and l ^ 4
//   a scale    for the lanes 0-3 and for the lanes 4-7
//
// A run is shared out over `parts` blocks, 32 groups each at a time.
#include <type_traits>

#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "ops/kv.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 8, kPairs = 4;
constexpr int kGroups = kThreads / kLanes;  // of a block, at a time

struct Pairs {
  __half2 v[kPairs];
};

__device__ unsigned bits_of(__half2 v) { return *reinterpret_cast<const unsigned*>(&v); }
__device__ __half2 pair_of(unsigned bits) { return *reinterpret_cast<const __half2*>(&bits); }
__device__ __half2 from_lane(__half2 v, int mask) { return pair_of(__shfl_xor_sync(0xffffffffu, bits_of(v), mask)); }

// Bit 0 of an element's index stays as it is: even and odd elements are two vectors. The _rn forms are never fused with
// a product before them, which would skip a rounding.
__device__ void rotate(Pairs& p) {
#pragma unroll
  for (int step = 1; step < kPairs; step *= 2) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (i & step) continue;
      const __half2 low = p.v[i], high = p.v[i + step];
      p.v[i] = __hadd2_rn(low, high);
      p.v[i + step] = __hsub2_rn(low, high);
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const __half2 sign = __float2half2_rn(threadIdx.x & step ? -1.0f : 1.0f);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) p.v[i] = __hfma2(p.v[i], sign, from_lane(p.v[i], step));
  }
}

__device__ Pairs pairs_of(uint4 bits) { return {{pair_of(bits.x), pair_of(bits.y), pair_of(bits.z), pair_of(bits.w)}}; }
__device__ uint4 bits_of(const Pairs& p) {
  return {bits_of(p.v[0]), bits_of(p.v[1]), bits_of(p.v[2]), bits_of(p.v[3])};
}

// kWide: both sides start where one access may take a lane's whole share.
template <typename Share, bool kWide, typename T>
__device__ Share load(const T* from) {
  if constexpr (kWide) {
    return *reinterpret_cast<const Share*>(from);
  } else {
    Share share;
    for (unsigned i = 0; i < sizeof(Share) / sizeof(T); ++i) reinterpret_cast<T*>(&share)[i] = from[i];
    return share;
  }
}

template <bool kWide, typename Share, typename T>
__device__ void store(T* to, const Share& share) {
  if constexpr (kWide) {
    *reinterpret_cast<Share*>(to) = share;
  } else {
    for (unsigned i = 0; i < sizeof(Share) / sizeof(T); ++i) to[i] = reinterpret_cast<const T*>(&share)[i];
  }
}

// work(group, fetch(group), whether there is such a group) for this block's part of a run, all lanes of a warp
// together; the next group is fetched before this one is worked on. What a run says beyond the N tokens is left out.
template <typename Fetch, typename Work>
__device__ void each_group(const KvArgs& a, unsigned parts, Fetch fetch, Work work) {
  using Fetched = decltype(fetch(int64_t{}));
  const int64_t run = blockIdx.x / parts, part = blockIdx.x % parts;
  const int64_t begin = min(max(a.runs[2 * run], int64_t{0}), a.N),
                end = min(max(a.runs[2 * run + 1], int64_t{0}), a.N);
  const int64_t first = (begin * a.T + 63) / 64, last = end * a.T / 64, step = parts * int64_t{kGroups};
  const int64_t of_warp = threadIdx.x / 32 * (32 / kLanes), of_lane = threadIdx.x % 32 / kLanes;
  int64_t group = first + part * kGroups + of_warp;
  const auto next_of = [&](int64_t g) { return g + of_lane < last ? fetch(g + of_lane) : Fetched{}; };
  for (Fetched next = next_of(group); group < last; group += step) {
    const Fetched now = next;
    next = next_of(group + step);
    work(group + of_lane, now, group + of_lane < last);
  }
}

template <int kBits, bool kWide>
__global__ void __launch_bounds__(kThreads) quantize_kernel(KvArgs a,          // as ops/kv.h says
                                                            unsigned parts) {  // blocks a run
  using Codes = std::conditional_t<kBits == 8, uint2, unsigned>;               // of a lane
  constexpr float c = 1 << (kBits - 1);
  wait_for_previous();
  let_next_begin();
  const __half2 zero = __float2half2_rn(0.0f), center = __float2half2_rn(c), top = __float2half2_rn(2 * c - 1);
  const int lane = threadIdx.x % kLanes;
  const auto fetch = [&](int64_t group) {
    return load<uint4, kWide>(static_cast<const __half*>(a.x) + group * 64 + lane * 8);
  };
  each_group(a, parts, fetch, [&](int64_t group, const uint4& x, bool there) {
    Pairs y = pairs_of(x);
    rotate(y);
    // __hmax2 passes over NaN.
    __half2 size = zero;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) size = __hmax2(size, __habs2(y.v[i]));
    size = __hmax2(size, from_lane(size, 1));
    size = __hmax2(size, from_lane(size, 2));
    const float largest = __half2float(__hmax(__low2half(size), __high2half(size)));
    // y / largest rounded to half: the product with the inverse is off by less than 2^-23, and no quotient of two
    // numbers of 11 digits lies that near to the middle between two halves. (Below 2^-14 some do; there the code is c.)
    const float inverse = 1.0f / largest;
    unsigned code[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 v = __half22float2(y.v[i]);
      const __half2 part = __floats2half2_rn(__fmul_rn(v.x, inverse), __fmul_rn(v.y, inverse));
      const __half2 level = __hmin2(__hmax2(__hfma2(part, center, center), zero), top);  // NaN gives 0
      // Between 1024 and 2048 halves are whole numbers: the sum rounds, and its lowest bits are the code.
      code[i] = bits_of(__hadd2_rn(level, __float2half2_rn(1024.0f)));
    }
    if (!there) return;
    Codes codes;
    if constexpr (kBits == 8) {
      codes = {__byte_perm(code[0], code[1], 0x6420), __byte_perm(code[2], code[3], 0x6420)};
    } else {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) code[i] = (code[i] & 15) | (code[i] >> 12 & ~15u);  // the lowest byte
      codes = __byte_perm(__byte_perm(code[0], code[1], 0x0040), __byte_perm(code[2], code[3], 0x0040), 0x5410);
    }
    store<kWide>(static_cast<uint8_t*>(a.codes) + (group * 8 + lane) * kBits, codes);
    if (lane % 4 == 0) static_cast<__half*>(a.scales)[group * 2 + lane / 4] = __float2half(largest * (1.0f / c));
  });
}

template <int kBits, bool kWide>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(KvArgs a,          // as ops/kv.h says
                                                              unsigned parts) {  // blocks a run
  using Codes = std::conditional_t<kBits == 8, uint2, unsigned>;
  constexpr float c = 1 << (kBits - 1);
  wait_for_previous();
  let_next_begin();
  const int lane = threadIdx.x % kLanes;
  struct Share {
    Codes codes;
    __half scale;
  };
  const auto fetch = [&](int64_t group) -> Share {
    return {load<Codes, kWide>(static_cast<const uint8_t*>(a.codes) + (group * 8 + lane) * kBits),
            static_cast<const __half*>(a.scales)[group * 2 + lane / 4]};
  };
  each_group(a, parts, fetch, [&](int64_t group, const Share& share, bool there) {
    // A code in the lowest bits of 1024 is 1024 + code.
    const __half2 scale = __half2half2(share.scale), offset = __float2half2_rn(1024.0f + c);
    Pairs y;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      unsigned pair;
      if constexpr (kBits == 8) {
        pair = __byte_perm(i < 2 ? share.codes.x : share.codes.y, 0x64, i % 2 ? 0x4342 : 0x4140);
      } else {
        const unsigned both = share.codes >> (8 * i);
        pair = (both & 15) | (both & 0xf0) << 12 | 0x64006400;
      }
      y.v[i] = __hmul2_rn(__hsub2_rn(pair_of(pair), offset), scale);
    }
    rotate(y);
    if (!there) return;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) y.v[i] = __hmul2_rn(y.v[i], __float2half2_rn(1.0f / 32));
    store<kWide>(static_cast<__half*>(a.x) + group * 64 + lane * 8, bits_of(y));
  });
}

// The runs are known on the device only: each gets its share of a full machine's blocks, but no more than a run over
// everything could use.
Status run(void (*kernel)(KvArgs, unsigned), const KvArgs& a, Stream stream) {
  if (a.n == 0 || a.N == 0 || a.T == 0) return {};
  const int64_t full = int64_t{8} * gpu().processors, most = (a.N * a.T / 64 + kGroups - 1) / kGroups;
  const int64_t share = (full + a.n - 1) / a.n, parts = most < 1 ? 1 : share < most ? share : most;
  if (a.n > 0x7fffffff / parts) return {"more runs than a grid has blocks"};
  return launch(kernel, dim3(static_cast<unsigned>(a.n * parts)), dim3(kThreads), 0, stream, gpu().sm >= 90, a,
                static_cast<unsigned>(parts));
}

bool wide(const KvArgs& a) {
  return reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && reinterpret_cast<uintptr_t>(a.codes) % a.bits == 0;
}

}  // namespace

Status kv_quantize(const KvArgs& a, Stream stream) {
  if (wide(a)) return run(a.bits == 4 ? quantize_kernel<4, true> : quantize_kernel<8, true>, a, stream);
  return run(a.bits == 4 ? quantize_kernel<4, false> : quantize_kernel<8, false>, a, stream);
}

Status kv_dequantize(const KvArgs& a, Stream stream) {
  if (wide(a)) return run(a.bits == 4 ? dequantize_kernel<4, true> : dequantize_kernel<8, true>, a, stream);
  return run(a.bits == 4 ? dequantize_kernel<4, false> : dequantize_kernel<8, false>, a, stream);
}

}  // namespace nybble::cuda
