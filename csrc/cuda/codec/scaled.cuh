// A tile as an operand of a tensor-core product: (code - zero) * scale, rounded to the activations' type.
#pragma once
#include <type_traits>

#include "cuda/codec/tile.cuh"
#include "cuda/common/number.cuh"

namespace nybble::cuda {

// A factor for pairs. The scale is fp16: in bfloat16 it takes two parts, so that only the product is rounded.
template <typename T>
struct Scale;

template <>
struct Scale<__half> {
  __half2 scale;
  __device__ explicit Scale(__half v) : scale(__half2half2(v)) {}
  __device__ __half2 operator()(__half2 code) const { return __hmul2(code, scale); }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // before it there is no arithmetic in bfloat16
template <>
struct Scale<__nv_bfloat16> {
  __nv_bfloat162 high, low;
  __device__ explicit Scale(__half v) {
    const float whole = __half2float(v);
    high = __float2bfloat162_rn(whole);
    low = __float2bfloat162_rn(whole - __low2float(high));
  }
  __device__ __nv_bfloat162 operator()(__nv_bfloat162 code) const { return __hfma2(code, high, __hmul2(code, low)); }
};
#endif

// Scale and zero of a lane's two columns.
struct Numbers {
  __half scale[2];
  float zero[2];  // unused where the zero is 2^(bits-1)

  template <bool kZeros>
  __device__ void load(const __half* scales, const float* zeros) {  // [16], the tile's columns'
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      scale[v] = scales[threadIdx.x % 32 / 4 + 8 * v];
      if constexpr (kZeros) zero[v] = zeros[threadIdx.x % 32 / 4 + 8 * v];
    }
  }
};

// code[4 s ... 4 s + 3] are a0 ... a3 of step s: code - zero.
template <typename T, int kBits, bool kZeros>
__device__ void decode_shifted(const TileLane<kBits>& words, const Numbers& numbers,
                               typename Pair<T>::type (&code)[8]) {
  decode<kBits, T, kZeros ? 0 : 1 << (kBits - 1)>(words, code);
  if constexpr (kZeros) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {  // a zero may have more digits than T: in two parts
      const auto zero = Pair<T>::both(numbers.zero[v]);
      const auto rest = Pair<T>::both(numbers.zero[v] - to_float(zero.x));
#pragma unroll
      for (int j = v; j < 8; j += 2) code[j] = __hsub2(__hsub2(code[j], zero), rest);
    }
  }
}

// The same times scale.
template <typename T, int kBits, bool kZeros>
__device__ void decode_scaled(const TileLane<kBits>& words, const Numbers& numbers, uint32_t (&out)[8]) {
  typename Pair<T>::type code[8];
  decode_shifted<T, kBits, kZeros>(words, numbers, code);
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    const Scale<T> scale(numbers.scale[v]);
#pragma unroll
    for (int j = v; j < 8; j += 2) {
      code[j] = scale(code[j]);
      out[j] = reinterpret_cast<const uint32_t&>(code[j]);
    }
  }
}

// Calls body(std::integral_constant<int, bits>).
template <typename Body>
__device__ void with_bits(int bits, Body body) {
  switch (bits) {
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 6:
      return body(std::integral_constant<int, 6>{});
    case 8:
      return body(std::integral_constant<int, 8>{});
  }
}

}  // namespace nybble::cuda
