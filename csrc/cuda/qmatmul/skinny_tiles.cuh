// Tiles of a packed matrix times a few rows of x, for one warp (sm_80 and later): the inner loop of skinny.cuh.
//
//   y^T = W^T x^T: a decoded tile is two operands A (16 columns of W by 16 k) as it stands, x^T is B (16 k by 8 rows)
//
//        16 k    16 k              8 rows
//      +-------+-------+          +------+
//      |   A   |   A   | 16       |  B   | 16 k     x in shared memory: [row][k block][t][8], so that lane 4 g + t
//      reads
//      +-------+-------+ columns  +------+          the B of a whole tile, row g, in one piece of 16 bytes: k = 2t,
//      2t+1,
//            a tile               |  B   | 16 k     and those 8, 16 and 24 further
//                                 +------+
//
// Codes are exact operands, a run of products is summed up, and the float32 sum is scaled. Zeros never touch the codes:
// the sum starts at -zero * (sum of x over the run).
#pragma once
#include "cuda/codec/tile.cuh"
#include "cuda/common/mma.cuh"

namespace nybble::cuda {

// x in shared memory as a lane sees it. Places are bytes from the start of shared memory.
template <int kRT>  // tiles of 8 rows
struct Operand {
  int x[kRT];     // of the lane's row, k block 0. 64 bytes further: the next
  bool row[kRT];  // whether it is there. What is not there is not read: a quarter of the warp less is a quarter of the
                  // time
  int sums;       // of the sums of x over k block 0, times 2^-24, a float a row
  int quads;      // the same over k blocks 0 ... 3
  int sums_step;
  int sum_row[kRT];  // of the two rows whose sums the lane holds, from sums on
};

// total += W^T x over kGroups runs of kTiles tiles from k block kb on, a run within one group: the scales of run j lie
// at scales[j], its zeros at 2 * scales[j] + zeros, unless there are none (0).
template <int kBits, int kRT, int kTiles, int kGroups>
__device__ void multiply_runs(const uint8_t* shared, int tiles, const int (&scales)[kGroups], int zeros, int kb,
                              const Operand<kRT>& x, float (&total)[kRT][4]) {
  using Codes = TinyCodes<kBits>;
  constexpr float kSecond = 1 << Codes::kSecond;  // odd operands are as many times as large
  const int lane = threadIdx.x % 32, g = lane / 4;
  float sums[kGroups][2][kRT][4] = {};  // of the even and the odd operands: two chains of products, not one
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    float start[2] = {-(1 << (kBits - 1)), -(1 << (kBits - 1)) * kSecond};
    if (zeros != 0) {
      const auto* zero = reinterpret_cast<const float*>(shared + 2 * scales[j] + zeros) + g;
      start[0] = -zero[0];
      start[1] = -zero[8] * kSecond;
    }
    const int from = kTiles == 4 ? x.quads + (kb / 4 + j) * x.sums_step : x.sums + (kb + j) * x.sums_step;
#pragma unroll
    for (int r = 0; r < kRT; ++r) {
      const auto sum = *reinterpret_cast<const float2*>(shared + from + x.sum_row[r]);
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[j][0][r][c] = start[c / 2] * (c % 2 == 0 ? sum.x : sum.y);
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      TileLane<kBits> words;
      words.load(shared + tiles + (j * kTiles + i) * 64 * kBits, lane);
      uint32_t a[8];
      Codes::decode(words, a);
      const unsigned even[4] = {a[0], a[1], a[2], a[3]}, odd[4] = {a[4], a[5], a[6], a[7]};
#pragma unroll
      for (int r = 0; r < kRT; ++r) {
        uint4 b = {0, 0, 0, 0};
        if (x.row[r]) b = *reinterpret_cast<const uint4*>(shared + x.x[r] + kb * 64 + (j * kTiles + i) * 64);
        multiply_add<__half>(sums[j][0][r], even, b.x, b.y);
        multiply_add<__half>(sums[j][1][r], odd, b.z, b.w);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const auto* scale = reinterpret_cast<const __half*>(shared + scales[j]) + g;
    const float s[2] = {__half2float(scale[0]), __half2float(scale[8]) * (1 / kSecond)};
#pragma unroll
    for (int r = 0; r < kRT; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) total[r][c] = fmaf(s[c / 2], sums[j][0][r][c] + sums[j][1][r][c], total[r][c]);
    }
  }
}

// Tiles of one width that a warp still has to multiply. `left` of them are of the group whose scales come first; every
// further group has `per`.
struct Tiles {
  int tiles, scales, zeros;  // places
  int kb, count, left, per;
};

// As many times kTiles * kGroups of them as there are.
template <int kBits, int kRT, int kTiles, int kGroups>
__device__ void multiply_many(const uint8_t* shared, Tiles& t, const Operand<kRT>& x, float (&total)[kRT][4]) {
  constexpr int kMany = kTiles * kGroups;
#pragma unroll 1
  for (; t.count >= kMany; t.count -= kMany) {
    int scales[kGroups];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      scales[j] = t.scales;
      t.left -= kTiles;
      if (t.left == 0) t.left = t.per, t.scales += 2 * kTileColumns;
    }
    multiply_runs<kBits, kRT, kTiles, kGroups>(shared, t.tiles, scales, t.zeros, t.kb, x, total);
    t.tiles += kMany * 64 * kBits;
    t.kb += kMany;
  }
}

// All of them: runs of four where the groups allow it, several at once where registers do, to hide their latency.
template <int kBits, int kRT>
__device__ void multiply_tiles(const uint8_t* shared, Tiles t, const Operand<kRT>& x, float (&total)[kRT][4]) {
  if ((t.per | t.left | t.kb) % 4 == 0) {
    if constexpr (kRT == 1) multiply_many<kBits, kRT, 4, 2>(shared, t, x, total);
    multiply_many<kBits, kRT, 4, 1>(shared, t, x, total);
  }
  if constexpr (kRT == 1) multiply_many<kBits, kRT, 1, 4>(shared, t, x, total);
  multiply_many<kBits, kRT, 1, 1>(shared, t, x, total);
}

}  // namespace nybble::cuda
