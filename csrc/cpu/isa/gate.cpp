#include "ops/gate.h"

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

Vec polynomial(Vec x, const float* c, int n) {
  Vec p = Vec::set(c[0]);
  for (int i = 1; i < n; ++i) p = fma(p, x, Vec::set(c[i]));
  return p;
}

Vec silu(Vec a) { return a / (Vec::set(1.0f) + exp(Vec::zero() - a)); }

// x (1 + tanh u) / 2 = x / (1 + exp(-2u)), which does not cancel for negative x.
Vec gelu_tanh(Vec x) {
  const Vec cube = x * x * x;
  const Vec u = Vec::set(0.7978845608028654f) * fma(Vec::set(0.044715f), cube, x);
  return x / (Vec::set(1.0f) + exp(Vec::set(-2.0f) * u));
}

// x Phi(x). Near 0 from erf's odd polynomial; beyond, from erfc(z) = exp(-z^2) / z P(1 / z^2) (coefficients of
// Moshier's Cephes library), so that the left tail keeps its relative accuracy.
Vec gelu(Vec x) {
  static const float near[] = {7.853861353153693e-5f,  -8.010193625184903e-4f, 5.188327685732524e-3f,
                               -2.685381193529856e-2f, 1.128358514861418e-1f,  -3.761262582423300e-1f,
                               1.128379165726710e+0f};
  static const float middle[] = {2.326819970068386e-2f,  -1.387039388740657e-1f, 3.687424674597105e-1f,
                                 -5.824733027278666e-1f, 6.210004621745983e-1f,  -4.944515323274145e-1f,
                                 3.404879937665872e-1f,  -2.741127028184656e-1f, 5.638259427386472e-1f};
  static const float far[] = {-1.047766399936249e+1f, 1.297719955372516e+1f,  -7.495518717768503e+0f,
                              2.921019019210786e+0f,  -1.015265279202700e+0f, 4.218463358204948e-1f,
                              -2.820767439740514e-1f, 5.641895067754075e-1f};
  const Vec half = Vec::set(0.5f), one = Vec::set(1.0f);
  const Vec z = x * Vec::set(0.7071067811865476f), az = abs(z);
  const Vec square = min(Vec::set(200.0f), half * x * x);
  const Vec lost = fma(half * x, x, Vec::zero() - square);  // what rounding took from the square, where fma is one step
  const Vec erf = z * polynomial(min(one, square), near, 7);
  const Vec inverse = one / max(one, az), s = inverse * inverse;
  const Vec p = select_lt(az, Vec::set(2.0f), polynomial(s, middle, 9), polynomial(s, far, 8));
  const Vec tail = half * exp(Vec::zero() - square) * (one - min(one, lost)) * inverse * p;  // Phi(-|x|)
  const Vec outer = select_lt(x, Vec::zero(), tail, one - tail);
  return x * select_lt(az, one, fma(half, erf, half), outer);
}

template <typename T, typename F>
void rows(const GateArgs& a, const F& act) {
  constexpr int W = Vec::width;
  // Pieces of a row, so that one long row keeps every thread busy.
  constexpr int64_t piece = 2048;
  const int64_t pieces = ceil_div(a.D, piece);
  parallel_for(a.R * pieces, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / pieces, from = i % pieces * piece, count = smaller(piece, a.D - from);
      const T* gate = static_cast<const T*>(a.gate) + r * a.gate_stride + from;
      const T* up = static_cast<const T*>(a.up) + r * a.up_stride + from;
      T* y = static_cast<T*>(a.y) + r * a.D + from;
      int64_t d = 0;
      for (; d + W <= count; d += W) (act(Vec::load(gate + d)) * Vec::load(up + d)).store(y + d);
      if (const int n = int(count - d)) (act(Vec::load_n(gate + d, n)) * Vec::load_n(up + d, n)).store_n(y + d, n);
    }
  });
}

}  // namespace

Status gate(const GateArgs& a) {
  with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (a.act == Act::silu)
      rows<T>(a, [](Vec v) { return silu(v); });
    else if (a.act == Act::gelu)
      rows<T>(a, [](Vec v) { return gelu(v); });
    else
      rows<T>(a, [](Vec v) { return gelu_tanh(v); });
  });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
