#include "ops/quantize_int8.h"

#include "cpu/simd/int8.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {

Status quantize_int8(const QuantizeArgs& a) {
  with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.R, larger(1, 16384 / larger(a.D, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
        a.scales[r] = write_codes(x, a.D, largest_of<float>(x, a.D), a.codes + r * a.D);
      }
    });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
