// The upper byte of each half number, or each byte as the upper one of a half.
//
//   row  [ t0: 8 elements | t1: 8 | ... ]   16 bytes on the side of the halves, 8 on the other
#include "cuda/common/launch.cuh"
#include "ops/fp8.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 256, kPiece = 8;

__device__ uint2 converted(const uint4& halves) {
  return {__byte_perm(halves.x, halves.y, 0x7531), __byte_perm(halves.z, halves.w, 0x7531)};
}
__device__ uint4 converted(const uint2& codes) {
  return {__byte_perm(codes.x, 0, 0x1404), __byte_perm(codes.x, 0, 0x3424), __byte_perm(codes.y, 0, 0x1404),
          __byte_perm(codes.y, 0, 0x3424)};
}
__device__ uint8_t converted(uint16_t half) { return static_cast<uint8_t>(half >> 8); }
__device__ uint16_t converted(uint8_t code) { return static_cast<uint16_t>(code << 8); }

template <typename From, typename Piece>
__global__ void __launch_bounds__(kThreads) convert_kernel(Fp8Args a,       // as ops/fp8.h says
                                                           int64_t pieces,  // of a row
                                                           bool wide) {     // a whole piece may be one access
  using To = decltype(converted(From{}));
  using Converted = decltype(converted(Piece{}));
  wait_for_previous();
  let_next_begin();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.R * pieces; i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / pieces, first = (i - row * pieces) * kPiece;
    const From* from = static_cast<const From*>(a.from) + row * a.from_stride + first;
    To* to = static_cast<To*>(a.to) + row * a.to_stride + first;
    if (wide && first + kPiece <= a.D) {
      *reinterpret_cast<Converted*>(to) = converted(*reinterpret_cast<const Piece*>(from));
    } else {
      for (int64_t j = 0; j < kPiece && first + j < a.D; ++j) to[j] = converted(from[j]);
    }
  }
}

template <typename From, typename Piece>
Status convert(Fp8Args a, Stream stream) {
  if (a.from_stride == a.D && a.to_stride == a.D) {  // one long row
    a.D *= a.R;
    a.R = 1;
  }
  if (a.R * a.D == 0) return {};
  constexpr int64_t from_bytes = sizeof(Piece), to_bytes = 24 - from_bytes;
  const auto even = [&](const void* p, int64_t stride, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(p) % bytes == 0 && (a.R == 1 || stride % kPiece == 0);
  };
  const bool wide = even(a.from, a.from_stride, from_bytes) && even(a.to, a.to_stride, to_bytes);
  const int64_t pieces = (a.D + kPiece - 1) / kPiece;
  const int64_t blocks = (a.R * pieces + kThreads - 1) / kThreads, most = int64_t{64} * gpu().processors;
  return launch(convert_kernel<From, Piece>, dim3(static_cast<unsigned>(blocks < most ? blocks : most)), dim3(kThreads),
                0, stream, gpu().sm >= 90, a, pieces, wide);
}

}  // namespace

Status fp8_encode(const Fp8Args& a, Stream stream) { return convert<uint16_t, uint4>(a, stream); }

Status fp8_decode(const Fp8Args& a, Stream stream) { return convert<uint8_t, uint2>(a, stream); }

}  // namespace nybble::cuda
