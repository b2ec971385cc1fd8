#include "ops/embedding.h"

#include <atomic>

#include "cpu/simd/copy.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {

Status embedding(const EmbeddingArgs& a) {
  std::atomic<bool> outside{false};
  with_types(a.w_dtype, a.y_dtype, [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    parallel_for(a.R, larger(1, 16384 / larger(1, a.D)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (a.ids[i] < 0 || a.ids[i] >= a.V)
          outside = true;
        else
          copy_row(static_cast<const From*>(a.weight) + a.ids[i] * a.D, static_cast<To*>(a.y) + i * a.D, a.D);
      }
    });
  });
  if (outside) return {"embedding: an id is outside the table"};
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
