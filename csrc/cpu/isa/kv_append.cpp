#include "ops/kv_append.h"

#include "cpu/simd/copy.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {

Status kv_append(const KvAppendArgs& a) {
  with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto put = [&](const void* source, const KvAppendArgs::Strides& s, void* store,
                         const KvAppendArgs::Strides& c, int64_t b, int64_t token, int64_t h) {
      copy_row(static_cast<const T*>(source) + b * s.b + token * s.s + h * s.h,
               static_cast<T*>(store) + b * c.b + (a.lengths[b] - a.T + token) * c.s + h * c.h, a.D);
    };
    parallel_for(a.B * a.T * a.Hk, larger(1, 16384 / larger(1, a.D)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / (a.T * a.Hk), token = i / a.Hk % a.T, h = i % a.Hk;
        put(a.k, a.k_stride, a.keys, a.keys_stride, b, token, h);
        put(a.v, a.v_stride, a.values, a.values_stride, b, token, h);
      }
    });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
