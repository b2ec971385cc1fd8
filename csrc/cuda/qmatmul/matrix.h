// A packed matrix as kernels take it: by value, so that neither memory nor a copy to the device is needed.
//
//   column block nb (16 columns):  weight + nb * column_bytes
//     segment 0: k blocks of one width   | segment 1 ...          each k block is a tile of 64 * bits bytes
//   scales, zeros: [NB][G][16]
#pragma once
#include <cstdint>

#include "ops/qmatmul.h"

namespace nybble::cuda {

// Neighbouring k blocks of one width whose groups follow each other, each over the same number of k blocks.
struct Segment {
  int32_t first;   // k block
  int32_t count;   // k blocks
  int32_t offset;  // of the first tile from the start of a column block, in units of 64 bytes
  int32_t group;   // of the first k block
  int32_t per;     // k blocks a group: k block first + i has group group + i / per
  int32_t bits;
  uint32_t inverse;  // of `per`, for group_of(); a slow division stays out of the kernels

  // i / per, exact below 2^16 k blocks.
#ifdef __CUDACC__
  __host__ __device__
#endif
      int32_t group_of(int32_t i) const {
    return inverse == 0 ? i : static_cast<int32_t>(static_cast<uint64_t>(i) * inverse >> 32);
  }
};

constexpr int kMaxSegments = 64;  // a real EXL2 matrix has at most six

struct Matrix {
  const uint8_t* weight;
  const uint16_t* scales;  // fp16
  const float* zeros;      // nullptr: 2^(bits-1)
  const int32_t* perm;     // [KB * 32]; nullptr: identity
  int64_t column_bytes;    // of a column block
  int32_t K, N, KB, G;
  int32_t segments;
  Segment segment[kMaxSegments];
};

// Fills `out` with the segments of k blocks `begin` and later, as many as fit; answers the first k block that did not.
// `blocks` [KB, 2] is in host memory; `offset` is where `begin` lies, in units of 64 bytes, and is moved on.
inline int32_t cut_segments(const int32_t* blocks, int32_t KB, int32_t begin, int32_t* offset, Matrix* out) {
  out->segments = 0;
  int32_t kb = begin;
  while (kb < KB && out->segments < kMaxSegments) {
    const int32_t bits = blocks[2 * kb], group = blocks[2 * kb + 1];
    Segment s{kb, 0, *offset, group, 0, bits, 0};
    const auto run = [&](int32_t from, int32_t g) {  // k blocks of this width and group from `from` on
      int32_t to = from;
      while (to < KB && blocks[2 * to] == bits && blocks[2 * to + 1] == g) ++to;
      return to - from;
    };
    s.per = s.count = run(kb, group);
    for (int32_t g = group + 1;; ++g) {
      const int32_t more = run(kb + s.count, g);
      if (more == 0 || more > s.per) break;
      s.count += more;
      if (more < s.per) break;
    }
    s.inverse = s.per == 1 ? 0 : static_cast<uint32_t>(((1ull << 32) + s.per - 1) / s.per);
    kb += s.count;
    *offset += s.count * bits;
    out->segment[out->segments++] = s;
  }
  return kb;
}

// Everything but the segments.
template <typename Args>  // QMatmulArgs or DequantizeArgs
Matrix describe(const Args& a) {
  Matrix m{};
  m.weight = a.weight;
  m.scales = a.scales;
  m.zeros = a.zeros;
  m.perm = a.perm;
  for (int64_t kb = 0; kb < a.KB; ++kb) m.column_bytes += 64 * a.blocks[2 * kb];
  m.K = static_cast<int32_t>(a.K);
  m.N = static_cast<int32_t>(a.N);
  m.KB = static_cast<int32_t>(a.KB);
  m.G = static_cast<int32_t>(a.G);
  return m;
}

}  // namespace nybble::cuda
