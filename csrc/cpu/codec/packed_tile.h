// Packed tile -> codes, for every instruction set: docs/formats/packed.md draws the layout.
// Written with the compiler's vector types, so that one text serves AVX-512, AVX2, SSE2 and NEON.
#pragma once
#include <cstdint>
#include <cstring>

namespace nybble::cpu::NYBBLE_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;  // 32-bit lanes of one register
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kParts = 16 / kLanes;  // registers for the 16 columns of a tile
constexpr int kQuads = 8;            // groups of 4 rows in a tile

typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef float F32 __attribute__((vector_size(4 * kLanes)));

template <typename V>
inline V load(const void* p) {  // any alignment
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename V>
inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// ORs the plane of P bits at `plane` into bits SHIFT.. of each code byte. Lanes are 32 bits wide: what a shift drags in
// from the neighbouring byte falls outside the mask.
template <int P, int SHIFT>
inline void add_plane(const uint8_t* plane, U32 (&codes)[kQuads]) {
  constexpr int fields = 8 / P;
  constexpr uint32_t mask = 0x01010101u * (((1u << P) - 1) << SHIFT);
#pragma GCC unroll 8
  for (int q = 0; q < kQuads; q++) {
    const U32 v = load<U32>(plane + 64 * (q / fields));
    const int right = P * (q % fields) - SHIFT;
    const U32 field = (right >= 0 ? v >> (right & 31) : v << (-right & 31)) & mask;
    codes[q] = SHIFT == 0 ? field : codes[q] | field;
  }
}

// Eight vectors, one for each 4 rows; lane c holds the codes of one column, a byte a row. `tile` points at the bytes of
// the first wanted column: tile + 4 * kLanes * part.
template <int BITS>
inline void decode(const uint8_t* tile, U32 (&codes)[kQuads]) {
  constexpr int low = BITS == 8 ? 8 : BITS >= 4 ? 4 : 2;
  add_plane<low, 0>(tile, codes);
  if constexpr (BITS > low) add_plane<BITS - low, low>(tile + 64 * low, codes);
}

// A width, or a number of rows, as a type; with_bits calls f with that of a width known only at run time.
template <int B>
struct Bits {
  static constexpr int value = B;
};
template <typename F>
inline void with_bits(int bits, const F& f) {
  switch (bits) {
    case 2:
      return f(Bits<2>{});
    case 3:
      return f(Bits<3>{});
    case 4:
      return f(Bits<4>{});
    case 5:
      return f(Bits<5>{});
    case 6:
      return f(Bits<6>{});
    default:
      return f(Bits<8>{});
  }
}

}  // namespace nybble::cpu::NYBBLE_ISA
