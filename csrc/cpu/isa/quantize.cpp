#include "ops/quantize.h"

#include "cpu/codec/grid.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;

// Rows summed at a time: their part of a block of columns stays in the first cache while all factors pass by, and a
// long column is a sum of short ones, which loses less to rounding.
constexpr int64_t kRows = 64;
constexpr int kVecs = 4;  // columns of one block, in vectors: independent sums, to hide the latency of a power

// Up to kVecs vectors of columns, through all rows and factors.
template <typename Power>
struct Block {
  const QuantizeErrorArgs& a;
  const Power& power;
  int64_t n;    // first column
  int columns;  // at most kVecs * W

  void run() const {
    for (int64_t p = 0; p < a.P; ++p)
      for (int i = 0; i < columns; ++i) a.error[p * a.N + n + i] = 0.0f;
    for (int64_t r = 0; r < a.R; r += kRows)
      for (int64_t p = 0; p < a.P; ++p) {
        if (columns == kVecs * W)
          add<true>(r, smaller(kRows, a.R - r), p);
        else
          add<false>(r, smaller(kRows, a.R - r), p);
      }
  }

  // error[p] += power(difference) over `rows` rows from r. Full: every vector is whole.
  template <bool Full>
  void add(int64_t r, int64_t rows, int64_t p) const {
    const Grid grid(a.zero, a.last);
    const float* x = a.x + r * a.x_stride + n;
    float* error = a.error + p * a.N + n;
    Vec scale[kVecs], inverse[kVecs], sum[kVecs];
    for (int j = 0; j < kVecs; ++j) {
      scale[j] = load<Full>(a.scales + n, j) * Vec::set(a.factors[p]);
      inverse[j] = Vec::set(1.0f) / scale[j];
      sum[j] = Vec::zero();
    }
    for (int64_t i = 0; i < rows; ++i, x += a.x_stride)
      for (int j = 0; j < kVecs; ++j) {
        const Vec w = load<Full>(x, j), steps = grid.code(w * inverse[j]) - grid.zero;
        sum[j] = sum[j] + power(abs(fma(steps, scale[j], Vec::zero() - w)));
      }
    for (int j = 0; j < kVecs; ++j) (load<Full>(error, j) + sum[j]).store_n(error + j * W, lanes(j));
  }

  template <bool Full>
  Vec load(const float* from, int j) const {
    return Full ? Vec::load(from + j * W) : Vec::load_n(from + j * W, lanes(j));
  }
  int lanes(int j) const { return int(smaller(W, larger(0, columns - j * W))); }
};

template <typename Power>
void errors(const QuantizeErrorArgs& a, const Power& power) {
  constexpr int64_t width = kVecs * W;
  parallel_for(ceil_div(a.N, width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) Block<Power>{a, power, i * width, int(smaller(width, a.N - i * width))}.run();
  });
}

}  // namespace

Status quantize_columns(const QuantizeColumnsArgs& a) {
  const Grid grid(a.zero, a.last);
  parallel_for(a.R, larger(1, 16384 / a.N), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t n = 0; n < a.N; n += W) {
        const int count = int(smaller(W, a.N - n));
        const Vec scale = Vec::load_n(a.scales + n, count);
        const Vec code = grid.code(Vec::load_n(a.x + r * a.x_stride + n, count) / scale);
        store_codes(code, a.codes + r * a.N + n, count);
        grid.value(code, scale).store_n(a.values + r * a.N + n, count);
      }
  });
  return {};
}

Status quantize_error(const QuantizeErrorArgs& a) {
  if (a.norm == 2.0f)
    errors(a, [](Vec e) { return e * e; });
  else
    errors(a, [norm = a.norm](Vec e) { return pow(e, norm); });
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
