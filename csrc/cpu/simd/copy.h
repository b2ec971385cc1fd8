// Rows of one float type to another.
#pragma once
#include <type_traits>

#include "cpu/simd/vec.h"

namespace nybble::cpu::NYBBLE_ISA {

// Calls f with a value of each of the two C++ types.
template <typename F>
inline void with_types(DType from, DType to, const F& f) {
  with_type(from, [&](auto a) { with_type(to, [&](auto b) { f(a, b); }); });
}

template <typename From, typename To>
inline void copy_row(const From* from, To* to, int64_t n) {
  if (n == 0) return;  // no bytes, and perhaps no memory: memcpy takes no null pointer
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, size_t(n) * sizeof(To));
  } else {
    int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) Vec::load(from + i).store(to + i);
    if (const int rest = int(n - i)) Vec::load_n(from + i, rest).store_n(to + i, rest);
  }
}

}  // namespace nybble::cpu::NYBBLE_ISA
