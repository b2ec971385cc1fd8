#include "ops/kv_append.h"

#include "cpu/simd/copy.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {

Status kv_append(const KvAppendArgs& a) {
  with_types(a.dtype, a.cache_dtype, [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    const auto put = [&](const void* source, const KvAppendArgs::Strides& s, void* store,
                         const KvAppendArgs::Strides& c, int64_t b, int64_t t, int64_t h) {
      copy_row(static_cast<const From*>(source) + b * s.b + t * s.s + h * s.h,
               static_cast<To*>(store) + b * c.b + (a.lengths[b] - a.T + t) * c.s + h * c.h, a.D);
    };
    parallel_for(a.B * a.T * a.Hk, larger(1, 16384 / larger(1, a.D)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / (a.T * a.Hk), t = i / a.Hk % a.T, h = i % a.Hk;
        put(a.k, a.k_stride, a.keys, a.keys_stride, b, t, h);
        put(a.v, a.v_stride, a.values, a.values_stride, b, t, h);
      }
    });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
