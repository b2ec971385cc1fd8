// y = gather(x, perm) @ W + bias + add with float products on the ordinary units. Serves float32 and GPUs without the
// tensor-core path, and says what that path must compute.
//
//   one block: 16 columns, 8 rows of x; its warps take k blocks in turn
//
//               k block 0   1   2  ...  8   9
//             +-----------+---+---+---+---+---+
//   16 columns|  warp 0   | 1 | 2 |...| 0 | 1 |    sums of the lanes, then of the warps, in a fixed order
//             +-----------+---+---+---+---+---+
#include "cuda/codec/tile.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/qmatmul/qmatmul.h"

namespace nybble::cuda {
namespace {

constexpr int kWarps = 8, kRows = 8;

struct Numbers {  // what a lane needs beside its codes
  const __half* scale;
  const float* zero;
};

template <int kBits>
__device__ void read_codes(const uint8_t* tile, int lane, __half2 (&codes)[8]) {
  TileLane<kBits> words;
  words.load(tile, lane);
  decode<kBits, __half, 0>(words, codes);
}

__device__ void read_codes(int bits, const uint8_t* tile, int lane, __half2 (&codes)[8]) {
  switch (bits) {
    case 2:
      return read_codes<2>(tile, lane, codes);
    case 3:
      return read_codes<3>(tile, lane, codes);
    case 4:
      return read_codes<4>(tile, lane, codes);
    case 5:
      return read_codes<5>(tile, lane, codes);
    case 6:
      return read_codes<6>(tile, lane, codes);
    default:
      return read_codes<8>(tile, lane, codes);
  }
}

// sums[m][v] += the lane's share of x[m] . W[:, n], n = 8 v + lane / 4, over one tile.
template <typename T>
__device__ void multiply_tile(int bits, const uint8_t* tile, Numbers numbers, const T* x, int64_t x_stride, int rows,
                              const Matrix& m, int kb, float (&sums)[kRows][2]) {
  const int lane = threadIdx.x % 32;
  __half2 codes[8];
  read_codes(bits, tile, lane, codes);
  float scale[2], zero[2];
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    scale[v] = __half2float(numbers.scale[lane / 4 + 8 * v]);
    zero[v] = numbers.zero == nullptr ? 1 << (bits - 1) : numbers.zero[lane / 4 + 8 * v];
  }
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int packed = kb * kTileRows + 16 * (j / 4) + 8 * (j / 2 % 2) + 2 * (lane % 4) + h;
      const int k = m.perm == nullptr ? packed : m.perm[packed];
      if (k < 0 || k >= m.K) continue;
      float w[2];
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const __half2 pair = codes[j + v];
        w[v] = (__half2float(h == 0 ? __low2half(pair) : __high2half(pair)) - zero[v]) * scale[v];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        const float a = to_float(x[r * x_stride + k]);
        sums[r][0] = fmaf(a, w[0], sums[r][0]);
        sums[r][1] = fmaf(a, w[1], sums[r][1]);
      }
    }
  }
}

template <typename T>
__global__ void simt_kernel(const Matrix m,      // with the segments of this launch
                            const T* x,          // [M, K], rows x_stride elements apart
                            int64_t x_stride,    //
                            const T* bias,       // [N] or nullptr
                            const T* add,        // [M, N], rows add_stride elements apart, or nullptr
                            int64_t add_stride,  //
                            T* y,                // [M, N]; written by the last launch
                            float* partial,      // [M, N] sums of the launches so far; nullptr: this is the only one
                            bool first, bool last, int64_t M) {
  __shared__ float shares[kWarps][kRows][kTileColumns];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t nb = blockIdx.x, row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int rows = M - row < kRows ? static_cast<int>(M - row) : kRows;
  float sums[kRows][2] = {};
  for (int i = 0; i < m.segments; ++i) {
    const Segment s = m.segment[i];
    for (int j = warp; j < s.count; j += kWarps) {
      const uint8_t* tile = m.weight + nb * m.column_bytes + 64ll * (s.offset + j * s.bits);
      const int64_t group = (nb * m.G + s.group + j / s.per) * kTileColumns;
      const Numbers numbers{reinterpret_cast<const __half*>(m.scales) + group,
                            m.zeros == nullptr ? nullptr : m.zeros + group};
      multiply_tile(s.bits, tile, numbers, x + row * x_stride, x_stride, rows, m, s.first + j, sums);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {  // the four lanes of a column hold different k
      sums[r][v] += __shfl_xor_sync(0xffffffffu, sums[r][v], 1);
      sums[r][v] += __shfl_xor_sync(0xffffffffu, sums[r][v], 2);
      if (lane % 4 == 0) shares[warp][r][lane / 4 + 8 * v] = sums[r][v];
    }
  }
  __syncthreads();
  const int r = threadIdx.x / kTileColumns;
  const int64_t n = nb * kTileColumns + threadIdx.x % kTileColumns;
  if (r >= rows || n >= m.N) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shares[w][r][threadIdx.x % kTileColumns];
  const int64_t at = (row + r) * m.N + n;
  if (!first) sum += partial[at];
  if (!last) {
    partial[at] = sum;
    return;
  }
  if (bias != nullptr) sum += to_float(bias[n]);
  if (add != nullptr) sum += to_float(add[(row + r) * add_stride + n]);
  y[at] = from_float<T>(sum);
}

constexpr int64_t kRowsAtOnce = 65535ll * kRows;  // what grid.y holds

}  // namespace

int64_t qmatmul_simt_scratch_bytes(const QMatmulArgs& a) {
  Matrix m{};
  int32_t offset = 0;
  const bool once = cut_segments(a.blocks, static_cast<int32_t>(a.KB), 0, &offset, &m) == a.KB;
  return once ? 0 : a.M * a.N * static_cast<int64_t>(sizeof(float));
}

Status qmatmul_simt(const QMatmulArgs& a, Stream stream) {
  Matrix m = describe(a);
  return with_type(a.x_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto columns = static_cast<unsigned>((a.N + kTileColumns - 1) / kTileColumns);
    int32_t offset = 0, kb = 0;
    do {  // once also where there is no k block: y is the bias then
      const bool first = kb == 0;
      kb = cut_segments(a.blocks, m.KB, kb, &offset, &m);
      for (int64_t row = 0; row < a.M; row += kRowsAtOnce) {
        const int64_t rows = a.M - row < kRowsAtOnce ? a.M - row : kRowsAtOnce;
        const T* add = static_cast<const T*>(a.add);
        float* partial = static_cast<float*>(a.scratch);
        simt_kernel<T>
            <<<dim3(columns, static_cast<unsigned>((rows + kRows - 1) / kRows)), 32 * kWarps, 0, native(stream)>>>(
                m, static_cast<const T*>(a.x) + row * a.x_stride, a.x_stride, static_cast<const T*>(a.bias),
                add == nullptr ? nullptr : add + row * a.add_stride, a.add_stride, static_cast<T*>(a.y) + row * a.N,
                partial == nullptr ? nullptr : partial + row * a.N, first, kb >= m.KB, rows);
        if (const Status done = launched(); !done.ok()) return done;
      }
    } while (kb < m.KB);
    return Status{};
  });
}

}  // namespace nybble::cuda
