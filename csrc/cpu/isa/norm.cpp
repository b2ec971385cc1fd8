#include "ops/norm.h"

#include <atomic>
#include <cmath>

#include "cpu/scratch.h"
#include "cpu/simd/int8.h"
#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;

// Sum of f(x_i) over a row in four vectors, so that a long row loses little to rounding and additions overlap.
template <typename T, typename F>
float row_sum(const T* x, int64_t D, const F& f) {
  Vec s[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  int64_t i = 0;
  for (; i + 4 * W <= D; i += 4 * W)
    for (int j = 0; j < 4; ++j) s[j] = f(Vec::load(x + i + j * W), s[j]);
  float sum = 0;
  for (; i + W <= D; i += W) s[0] = f(Vec::load(x + i), s[0]);
  for (; i < D; ++i) {
    // One lane at a time: a lane beyond the row must not count where f(0) is not 0.
    float lane[W] = {};
    f(Vec::set(to_float(x[i])), Vec::zero()).store(lane);
    sum += lane[0];
  }
  return sum + ((s[0] + s[1]) + (s[2] + s[3])).hsum();
}

// y = (x - mean) * inv * weight + bias
template <typename T, typename WT, typename YT>
void scale_row(const T* x, const WT* weight, const WT* bias, YT* y, int64_t D, float mean, float inv) {
  const Vec m = Vec::set(mean), k = Vec::set(inv);
  int64_t i = 0;
  for (; i + W <= D; i += W) {
    const Vec v = (Vec::load(x + i) - m) * k * Vec::load(weight + i);
    (bias ? v + Vec::load(bias + i) : v).store(y + i);
  }
  if (const int n = int(D - i)) {
    const Vec v = (Vec::load_n(x + i, n) - m) * k * Vec::load_n(weight + i, n);
    (bias ? v + Vec::load_n(bias + i, n) : v).store_n(y + i, n);
  }
}

// Two passes: the variance as mean(x^2) - mean^2 would cancel where the mean is large.
template <typename T>
void mean_and_deviation(const T* x, const NormArgs& a, float* mean, float* inv) {
  *mean = row_sum(x, a.D, [](Vec v, Vec s) { return s + v; }) / float(a.D);
  const Vec m = Vec::set(*mean);
  const float square = row_sum(x, a.D, [m](Vec v, Vec s) { return fma(v - m, v - m, s); });
  *inv = 1.0f / std::sqrt(square / float(a.D) + a.eps);
}

// moments(row) gives the mean to subtract and the factor to apply.
template <typename M>
void norm(const NormArgs& a, const M& moments) {
  with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t grain = larger(1, 16384 / larger(a.D, 1));
    parallel_for(a.R, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
        float mean = 0, inv = 0;
        moments(x, &mean, &inv);
        // The other types are told apart inside: only this step meets them, and sums for every mixture would be built
        // in vain.
        with_type(a.w_dtype, [&](auto w) {
          using WT = decltype(w);
          const WT* weight = static_cast<const WT*>(a.weight) + r % a.H * a.D;
          const WT* bias = a.bias == nullptr ? nullptr : static_cast<const WT*>(a.bias) + r % a.H * a.D;
          with_type(a.y_dtype, [&](auto out) {
            using YT = decltype(out);
            scale_row(x, weight, bias, static_cast<YT*>(a.y) + r * a.y_stride, a.D, mean, inv);
          });
        });
      }
    });
  });
}

}  // namespace

Status rms_norm(const NormArgs& a) {
  NormArgs plain = a;
  plain.bias = nullptr;
  norm(plain, [&](const auto* x, float*, float* inv) {
    const float square = row_sum(x, a.D, [](Vec v, Vec s) { return fma(v, v, s); });
    *inv = 1.0f / std::sqrt(square / float(a.D) + a.eps);
  });
  return {};
}

Status layer_norm(const NormArgs& a) {
  norm(a, [&](const auto* x, float* mean, float* inv) { mean_and_deviation(x, a, mean, inv); });
  return {};
}

Status layer_norm_int8(const NormInt8Args& args) {
  const NormArgs& a = args.norm;
  std::atomic<bool> failed{false};
  with_type(a.dtype, [&](auto t) {
    with_type(a.w_dtype, [&](auto w) {
      using T = decltype(t);
      using WT = decltype(w);
      parallel_for(a.R, larger(1, 16384 / larger(a.D, 1)), [&](int64_t begin, int64_t end) {
        float* y = static_cast<float*>(thread_scratch(Slot::norm_row, a.D * 4));
        if (!y) {
          failed = true;
          return;
        }
        for (int64_t r = begin; r < end; ++r) {
          const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
          float mean = 0, inv = 0;
          mean_and_deviation(x, a, &mean, &inv);
          scale_row(x, static_cast<const WT*>(a.weight), static_cast<const WT*>(a.bias), y, a.D, mean, inv);
          args.scales[r] = write_codes(y, a.D, largest_of<T>(y, a.D), args.codes + r * a.D);
        }
      });
    });
  });
  if (failed) return {"layer_norm_int8: out of memory"};
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
