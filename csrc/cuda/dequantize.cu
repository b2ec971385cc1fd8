// W[perm[k], n] = (code[k, n] - zero[g, n]) * scale[g, n]: a packed matrix as plain numbers, rounded once.
//
//   one block: 4 column blocks (64 columns) x 32 rows, a warp a tile; decoded into shared memory, written row by row
//
//              16 columns   16   16   16
//            +-----------+----+----+----+
//   32 rows  |  warp 0   |  1 |  2 |  3 |     rows of 64 numbers leave in runs of 16 bytes a thread where y allows
//            +-----------+----+----+----+
#include "cuda/codec/tile.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/qmatmul/matrix.h"
#include "ops/dequantize.h"

namespace nybble::cuda {
namespace {

constexpr int kWarps = 4, kColumns = kWarps * kTileColumns;

// A warp decodes its tile to float values in shared memory, [32][kColumns].
template <int kBits>
__device__ void decode_tile(const uint8_t* tile, const __half* scale, const float* zero, float (*out)[kColumns + 1]) {
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * kTileColumns;
  TileLane<kBits> words;
  words.load(tile, lane);
  __half2 codes[8];
  decode<kBits, __half, 0>(words, codes);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int n = lane / 4 + 8 * (j % 2), k = 16 * (j / 4) + 8 * (j / 2 % 2) + 2 * (lane % 4);
    const float s = __half2float(scale[n]), z = zero == nullptr ? 1 << (kBits - 1) : zero[n];
    out[k][column + n] = (__low2float(codes[j]) - z) * s;
    out[k + 1][column + n] = (__high2float(codes[j]) - z) * s;
  }
}

template <typename T>
__global__ void dequantize_kernel(const Matrix m,  // with the segments of this launch
                                  T* y,            // [K, N]
                                  bool vectors) {  // rows of y start at multiples of 16 bytes
  __shared__ float tile[kTileRows][kColumns + 1];
  const Segment s = m.segment[blockIdx.y];
  const int NB = (m.N + kTileColumns - 1) / kTileColumns;
  const int nb = blockIdx.x * kWarps + threadIdx.x / 32;
  for (int i = blockIdx.z; i < s.count; i += gridDim.z) {
    if (nb < NB) {
      const uint8_t* at = m.weight + nb * m.column_bytes + 64ll * (s.offset + i * s.bits);
      const int64_t group = (static_cast<int64_t>(nb) * m.G + s.group + i / s.per) * kTileColumns;
      const auto* scale = reinterpret_cast<const __half*>(m.scales) + group;
      const float* zero = m.zeros == nullptr ? nullptr : m.zeros + group;
      switch (s.bits) {
        case 2:
          decode_tile<2>(at, scale, zero, tile);
          break;
        case 3:
          decode_tile<3>(at, scale, zero, tile);
          break;
        case 4:
          decode_tile<4>(at, scale, zero, tile);
          break;
        case 5:
          decode_tile<5>(at, scale, zero, tile);
          break;
        case 6:
          decode_tile<6>(at, scale, zero, tile);
          break;
        case 8:
          decode_tile<8>(at, scale, zero, tile);
          break;
      }
    }
    __syncthreads();
    constexpr int kRun = 16 / sizeof(T);  // numbers a thread writes at once
    for (int at = threadIdx.x; at < kTileRows * kColumns / kRun; at += blockDim.x) {
      const int row = at / (kColumns / kRun), column = at % (kColumns / kRun) * kRun;
      const int packed = (s.first + i) * kTileRows + row;
      const int k = m.perm == nullptr ? packed : m.perm[packed];
      const int64_t n = static_cast<int64_t>(blockIdx.x) * kColumns + column;
      if (k < 0 || k >= m.K || n >= m.N) continue;
      alignas(16) T values[kRun];
#pragma unroll
      for (int c = 0; c < kRun; ++c) values[c] = from_float<T>(tile[row][column + c]);
      T* to = y + static_cast<int64_t>(k) * m.N + n;
      if (vectors && n + kRun <= m.N) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(values);
      } else {
        for (int c = 0; c < kRun && n + c < m.N; ++c) to[c] = values[c];
      }
    }
    __syncthreads();
  }
}

}  // namespace

Status dequantize(const DequantizeArgs& a, Stream stream) {
  if (a.K > INT32_MAX - 32 || a.N > INT32_MAX - 32) return {"dequantize: K and N are limited to 2^31 - 33"};
  if (a.K == 0 || a.N == 0) return {};
  Matrix m = describe(a);
  return with_type(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* y = static_cast<T*>(a.y);
    // Rows that no packed row names do not exist: every k in [0, K) is named once. So y is written whole.
    const bool vectors = reinterpret_cast<uintptr_t>(y) % 16 == 0 && a.N * sizeof(T) % 16 == 0;
    const auto columns = static_cast<unsigned>((a.N + kColumns - 1) / kColumns);
    int32_t offset = 0;
    for (int32_t kb = 0; kb < m.KB;) {
      kb = cut_segments(a.blocks, m.KB, kb, &offset, &m);
      int32_t longest = 1;
      for (int i = 0; i < m.segments; ++i) longest = longest > m.segment[i].count ? longest : m.segment[i].count;
      const dim3 grid(columns, m.segments, longest < 65535 ? longest : 65535);
      dequantize_kernel<T><<<grid, 32 * kWarps, 0, native(stream)>>>(m, y, vectors);
      if (const Status done = launched(); !done.ok()) return done;
    }
    return Status{};
  });
}

}  // namespace nybble::cuda
