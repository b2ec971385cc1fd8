#include "ops/fp8.h"

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

template <typename From, typename To, typename F>
Status each(const Fp8Args& a, const F& convert) {
  // Pieces of a row, so that one long row keeps every thread busy.
  constexpr int64_t piece = 1 << 14;
  const int64_t pieces = ceil_div(a.D, piece);
  parallel_for(a.R * pieces, 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p % pieces * piece, count = smaller(piece, a.D - first);
      const From* from = static_cast<const From*>(a.from) + p / pieces * a.from_stride + first;
      To* to = static_cast<To*>(a.to) + p / pieces * a.to_stride + first;
      for (int64_t i = 0; i < count; ++i) to[i] = convert(from[i]);
    }
  });
  return {};
}

}  // namespace

Status fp8_encode(const Fp8Args& a) {
  return each<uint16_t, uint8_t>(a, [](uint16_t bits) { return uint8_t(bits >> 8); });
}

Status fp8_decode(const Fp8Args& a) {
  return each<uint8_t, uint16_t>(a, [](uint8_t code) { return uint16_t(code << 8); });
}

}  // namespace nybble::cpu::NYBBLE_ISA
