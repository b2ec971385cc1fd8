// Packed matrix -> plain rows.
//
//          16 columns                           N columns
//        +-----------+                    +-----------------------+
//   kb   |   tile    |  -- decode, -->    | row perm[32 kb]       |
//        |  32 rows  |     scale          | row perm[32 kb + 1]   |   a tile is 16 columns of 32 rows
//        +-----------+                    +-----------------------+
//
// A thread takes whole k blocks and walks along their columns, so that each row is written from left to right.
#include "ops/dequantize.h"

#include "cpu/codec/packed_tile.h"
#include "cpu/simd/vec.h"
#include "cpu/threads.h"
#include "ops/qmatmul.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;
static_assert(kLanes % W == 0, "a decoded register holds whole vectors of floats");

// Row of W for packed row r, or -1 for padding.
inline int64_t target_row(const DequantizeArgs& a, int64_t r) { return a.perm ? a.perm[r] : r < a.K ? r : -1; }

// The tile of k block kb and columns n0 .. n0 + 15.
template <int BITS, typename T>
void write_tile(const DequantizeArgs& a, const uint8_t* tile, int64_t kb, int64_t n0) {
  const int64_t at = (n0 / kPackColumns * a.G + a.blocks[2 * kb + 1]) * kPackColumns;
  const f16* scales = reinterpret_cast<const f16*>(a.scales) + at;
  for (int part = 0; part < kParts; ++part) {
    U32 codes[kQuads];
    decode<BITS>(tile + 4 * kLanes * part, codes);
    for (int v = 0; v < kLanes; v += W) {
      const int column = part * kLanes + v, count = int(smaller(W, a.N - n0 - column));
      if (count <= 0) return;
      const Vec scale = Vec::load(scales + column);
      const Vec zero = a.zeros ? Vec::load(a.zeros + at + column) : Vec::set(float(1 << (BITS - 1)));
      for (int r = 0; r < kPackRows; ++r) {
        const int64_t row = target_row(a, kb * kPackRows + r);
        if (row < 0) continue;
        float code[kLanes];
        store(code, __builtin_convertvector((I32)(codes[r / 4] >> (8 * (r % 4)) & 0xff), F32));
        const Vec w = (Vec::load(code + v) - zero) * scale;
        T* to = static_cast<T*>(a.y) + row * a.N + n0 + column;
        if (count == W)
          w.store(to);
        else
          w.store_n(to, count);
      }
    }
  }
}

}  // namespace

Status dequantize(const DequantizeArgs& a) {
  int64_t column_bytes = 0;
  for (int64_t kb = 0; kb < a.KB; ++kb) column_bytes += 64 * a.blocks[2 * kb];

  with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.KB, larger(1, 4096 / larger(1, a.N)), [&](int64_t begin, int64_t end) {
      const uint8_t* first = a.weight;  // of k block kb's tiles, that of column block 0
      for (int64_t kb = 0; kb < begin; ++kb) first += 64 * a.blocks[2 * kb];
      for (int64_t kb = begin; kb < end; ++kb) {
        with_bits(a.blocks[2 * kb], [&](auto bits) {
          const uint8_t* tile = first;
          for (int64_t n = 0; n < a.N; n += kPackColumns, tile += column_bytes)
            write_tile<bits.value, T>(a, tile, kb, n);
        });
        first += 64 * a.blocks[2 * kb];
      }
    });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
