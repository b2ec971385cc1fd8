// Tiles of a packed matrix on their way to the tensor cores, and their product with a few rows of x, for one warp
// (sm_80 and later): the inner loop of few.cuh.
//
//   y^T = W^T x^T: a decoded tile is two operands A (16 columns of W by 16 k) as it stands, x^T is B (16 k by 8 rows)
//
//        16 k    16 k              8 rows
//      +-------+-------+          +------+
//      |   A   |   A   | 16       |  B   | 16 k     ldmatrix brings the B of a whole tile from x as it lies, row by
//      +-------+-------+ columns  +------+          row, in shared memory (few_rows.cuh)
//            a tile               |  B   | 16 k
//                                 +------+
//
// Codes less 2^(bits-1) are exact operands; a run of products is summed up, and the float32 sum is scaled. Other zeros
// never touch the codes.
#pragma once
#include "cuda/codec/tile.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/qmatmul/few_rows.cuh"

namespace nybble::cuda {

// x in shared memory as a lane sees it, from some k block on.
struct FewOperand {
  unsigned x;           // what the lane hands to ldmatrix. 64 bytes further: the next k block
  const uint8_t* sums;  // of x over four k blocks: floats of the lane's two rows
  int sums_step;        // bytes to those of the next four
};

// Four tiles that follow each other in memory and share their scales.
template <int kBits>
struct Quad {
  static constexpr int kBytes = 4 * 64 * kBits;
  TileLane<kBits> tile[4];
  uint16_t scale;  // of column lane % 16
  float zero;

  // `scales` and `zeros` point to the lane's column.
  __device__ __forceinline__ void fetch(const uint8_t* from, const uint16_t* scales, const float* zeros, int lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile[i].fetch(from + i * 64 * kBits, lane);
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(scale) : "l"(scales));
    if (zeros != nullptr) asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(zero) : "l"(zeros));
  }

  // total += W^T x, with 2^(bits-1) for the zeros.
  template <typename T>
  __device__ __forceinline__ void multiply(const FewOperand& x, int lane, float (&total)[4]) {
    float even_sums[4] = {}, odd_sums[4] = {};  // two chains of products, not one
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      typename Pair<T>::type pairs[8];
      tile[i].spread();
      decode<kBits, T, 1 << (kBits - 1)>(tile[i], pairs);
      const auto* w = reinterpret_cast<const unsigned*>(pairs);
      const unsigned even[4] = {w[0], w[1], w[2], w[3]}, odd[4] = {w[4], w[5], w[6], w[7]};
      unsigned b[4];
      load_matrices<false>(b, x.x + i * 64);
      multiply_add<T>(even_sums, even, b[0], b[1]);
      multiply_add<T>(odd_sums, odd, b[2], b[3]);
    }
    const int mine = scale;
    const float s[2] = {as_float(__shfl_sync(0xffffffffu, mine, lane / 4)),
                        as_float(__shfl_sync(0xffffffffu, mine, lane / 4 + 8))};
#pragma unroll
    for (int c = 0; c < 4; ++c) total[c] = fmaf(s[c / 2], even_sums[c] + odd_sums[c], total[c]);
  }

  // What other zeros change: total += scale * (2^(bits-1) - zero) * (sum of x).
  __device__ __forceinline__ void move_zeros(const FewOperand& x, int lane, float (&total)[4]) const {
    const float mine = as_float(scale) * ((1 << (kBits - 1)) - zero);
    const float off[2] = {__shfl_sync(0xffffffffu, mine, lane / 4), __shfl_sync(0xffffffffu, mine, lane / 4 + 8)};
    const auto sum = *reinterpret_cast<const float2*>(x.sums);
#pragma unroll
    for (int c = 0; c < 4; ++c) total[c] = fmaf(off[c / 2], c % 2 == 0 ? sum.x : sum.y, total[c]);
  }

 private:
  __device__ static float as_float(int half) { return __half2float(__ushort_as_half(static_cast<uint16_t>(half))); }
};

}  // namespace nybble::cuda
