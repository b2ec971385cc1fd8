#include "ops/embedding.h"

#include <atomic>

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

template <typename From, typename To>
void convert(const From* from, To* to, int64_t n) {
  int64_t i = 0;
  for (; i + Vec::width <= n; i += Vec::width) Vec::load(from + i).store(to + i);
  if (const int rest = int(n - i)) Vec::load_n(from + i, rest).store_n(to + i, rest);
}

}  // namespace

Status embedding(const EmbeddingArgs& a) {
  std::atomic<bool> outside{false};
  with_type(a.w_dtype, [&](auto w) {
    with_type(a.y_dtype, [&](auto t) {
      using WT = decltype(w);
      using T = decltype(t);
      parallel_for(a.R, larger(1, 16384 / larger(1, a.D)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (a.ids[i] < 0 || a.ids[i] >= a.V) {
            outside = true;
            continue;
          }
          if (a.D == 0) continue;  // no bytes, and perhaps no memory: memcpy takes no null pointer
          const WT* from = static_cast<const WT*>(a.weight) + a.ids[i] * a.D;
          T* to = static_cast<T*>(a.y) + i * a.D;
          if (a.w_dtype == a.y_dtype) std::memcpy(to, from, size_t(a.D) * sizeof(T));
          else convert(from, to, a.D);
        }
      });
    });
  });
  if (outside) return {"embedding: an id is outside the table"};
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
