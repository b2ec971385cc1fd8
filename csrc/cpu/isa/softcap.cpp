#include "ops/softcap.h"

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {

Status softcap(const SoftcapArgs& a) {
  constexpr int W = Vec::width;
  // Pieces of a row, so that the logits of one token keep every thread busy.
  constexpr int64_t piece = 2048;
  const int64_t pieces = ceil_div(a.D, piece);
  const Vec cap = Vec::set(a.cap);
  with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.R * pieces, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t from = i % pieces * piece, count = smaller(piece, a.D - from);
        T* x = static_cast<T*>(a.x) + i / pieces * a.stride + from;
        int64_t d = 0;
        for (; d + W <= count; d += W) (cap * tanh(Vec::load(x + d) / cap)).store(x + d);
        if (const int n = int(count - d)) (cap * tanh(Vec::load_n(x + d, n) / cap)).store_n(x + d, n);
      }
    });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
