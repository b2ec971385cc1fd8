#include "ops/embedding.h"

#include <atomic>

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu {

Status embedding(const EmbeddingArgs& a) {
  std::atomic<bool> outside{false};
  generic::with_type(a.w_dtype, [&](auto w) {
    generic::with_type(a.y_dtype, [&](auto t) {
      using WT = decltype(w);
      using T = decltype(t);
      parallel_for(a.R, generic::larger(1, 16384 / generic::larger(1, a.D)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (a.ids[i] < 0 || a.ids[i] >= a.V) {
            outside = true;
            continue;
          }
          if (a.D == 0) continue;  // no bytes, and perhaps no memory: memcpy takes no null pointer
          const WT* from = static_cast<const WT*>(a.weight) + a.ids[i] * a.D;
          T* to = static_cast<T*>(a.y) + i * a.D;
          if (a.w_dtype == a.y_dtype) std::memcpy(to, from, size_t(a.D) * sizeof(T));
          else for (int64_t d = 0; d < a.D; ++d) generic::from_float(generic::to_float(from[d]), to + d);
        }
      });
    });
  });
  if (outside) return {"embedding: an id is outside the table"};
  return {};
}

}  // namespace nybble::cpu
