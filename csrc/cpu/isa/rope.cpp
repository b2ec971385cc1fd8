#include "ops/rope.h"

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

// Channels i and i + half.
template <typename T>
void rotate_halves(T* x, const float* cos, const float* sin, int64_t half) {
  constexpr int W = Vec::width;
  for (int64_t i = 0; i < half; i += W) {
    const int n = int(smaller(W, half - i));
    const Vec c = Vec::load_n(cos + i, n), s = Vec::load_n(sin + i, n);
    const Vec a = Vec::load_n(x + i, n), b = Vec::load_n(x + half + i, n);
    (a * c - b * s).store_n(x + i, n);
    fma(b, c, a * s).store_n(x + half + i, n);
  }
}

// Channels 2i and 2i + 1.
template <typename T>
void rotate_pairs(T* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
    from_float(a * cos[i] - b * sin[i], x + 2 * i);
    from_float(b * cos[i] + a * sin[i], x + 2 * i + 1);
  }
}

}  // namespace

Status rope(const RopeArgs& a) {
  const int64_t half = a.R / 2;
  with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.B * a.T, larger(1, 8192 / larger(1, a.H * a.R)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* row = static_cast<T*>(a.x) + i / a.T * a.stride_b + i % a.T * a.stride_t;
        const float *cos = a.cos + a.positions[i] * half, *sin = a.sin + a.positions[i] * half;
        for (int64_t h = 0; h < a.H; ++h) {
          if (a.neox)
            rotate_halves(row + h * a.stride_h, cos, sin, half);
          else
            rotate_pairs(row + h * a.stride_h, cos, sin, half);
        }
      }
    });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
