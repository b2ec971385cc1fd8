// W groups at a time, one a lane, so that the rotation adds whole vectors and no lane meets another:
//
//   memory     group 0: e0 e1 ... e63   group 1: e0 e1 ... e63   ...        W x W squares are transposed on the way in
//   block.y    e0 of groups 0 ... W-1   e1 of groups 0 ... W-1   ... e63    and on the way out
#include "ops/kv.h"

#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;
constexpr int group = 64, half_group = 32;

struct Block {
  f16 y[group * W];       // element by element, a lane a group; a store rounds to half
  float rows[W * group];  // group by group
};

Vec rounded(Vec v) {
  f16 half[W];
  v.store(half);
  return Vec::load(half);
}

// Rows [first, first + W) of all groups: load(g) gives W elements of group g.
template <typename F>
void columns_from(Block& b, int first, int groups, const F& load) {
  Vec v[W];
  for (int g = 0; g < W; ++g) v[g] = g < groups ? load(g) : Vec::zero();
  transpose(v);
  for (int i = 0; i < W; ++i) v[i].store(b.y + (first + i) * W);
}

// The opposite: make(i) gives element first + i of all groups, keep(g, v) takes W elements of group g.
template <typename F, typename G>
void rows_from(int groups, const F& make, const G& keep) {
  Vec v[W];
  for (int i = 0; i < W; ++i) v[i] = make(i);
  transpose(v);
  for (int g = 0; g < groups; ++g) keep(g, v[g]);
}

// Bit 0 of the index stays as it is: even and odd elements are two vectors.
void rotate(Block& b) {
  for (int step = 2; step < group; step *= 2)
    for (int i = 0; i < group; i += 2 * step)
      for (int j = i; j < i + step; ++j) {
        const Vec low = Vec::load(b.y + j * W), high = Vec::load(b.y + (j + step) * W);
        (low + high).store(b.y + j * W);
        (low - high).store(b.y + (j + step) * W);
      }
}

template <int bits>
void pack(const float* rows, uint8_t* codes, int64_t count) {
  if (bits == 8) {
    for (int64_t i = 0; i < count; ++i) codes[i] = uint8_t(int(rows[i]));
  } else {
    for (int64_t i = 0; i < count / 2; ++i) codes[i] = uint8_t(int(rows[2 * i]) | int(rows[2 * i + 1]) << 4);
  }
}

template <int bits>
void unpack(const uint8_t* codes, float* rows, int64_t count) {
  constexpr int c = 1 << (bits - 1);
  if (bits == 8) {
    for (int64_t i = 0; i < count; ++i) rows[i] = float(int(codes[i]) - c);
  } else {
    for (int64_t i = 0; i < count / 2; ++i) {
      rows[2 * i] = float(int(codes[i] & 15) - c);
      rows[2 * i + 1] = float(int(codes[i] >> 4) - c);
    }
  }
}

template <int bits>
void quantize(const f16* x, uint8_t* codes, f16* scales, int groups) {
  constexpr float c = 1 << (bits - 1);
  Block b;
  for (int first = 0; first < group; first += W)
    columns_from(b, first, groups, [&](int g) { return Vec::load(x + g * group + first); });
  rotate(b);
  for (int side = 0; side < 2; ++side) {
    const f16* y = b.y + side * half_group * W;
    Vec largest = Vec::zero();
    for (int i = 0; i < half_group; ++i) {
      const Vec size = abs(Vec::load(y + i * W));
      largest = select_lt(largest, size, size, largest);  // passes over NaN, which max does not on every machine
    }
    f16 scale[W];
    (largest * Vec::set(1.0f / c)).store(scale);
    for (int g = 0; g < groups; ++g) scales[2 * g + side] = scale[g];
    for (int first = 0; first < half_group; first += W) {
      rows_from(
          groups,
          [&](int i) {
            const Vec part = rounded(Vec::load(y + (first + i) * W) / largest);
            const Vec code = round(rounded(fma(part, Vec::set(c), Vec::set(c))));
            return min(select_lt(Vec::zero(), code, code, Vec::zero()), Vec::set(2 * c - 1));  // NaN gives 0
          },
          [&](int g, Vec v) { v.store(b.rows + g * group + side * half_group + first); });
    }
  }
  pack<bits>(b.rows, codes, int64_t(groups) * group);
}

template <int bits>
void dequantize(f16* x, const uint8_t* codes, const f16* scales, int groups) {
  Block b;
  unpack<bits>(codes, b.rows, int64_t(groups) * group);
  for (int first = 0; first < group; first += W)
    columns_from(b, first, groups, [&](int g) {
      return Vec::load(b.rows + g * group + first) * Vec::set(to_float(scales[2 * g + first / half_group]));
    });
  rotate(b);
  for (int first = 0; first < group; first += W)
    rows_from(
        groups, [&](int i) { return Vec::load(b.y + (first + i) * W) * Vec::set(1.0f / half_group); },
        [&](int g, Vec v) { v.store(x + g * group + first); });
}

// work(first group, groups): up to W of them.
template <typename F>
Status blocks(const KvArgs& a, const F& work) {
  for (int64_t r = 0; r < a.n; ++r) {
    const int64_t first = a.runs[2 * r] * a.T / group, last = a.runs[2 * r + 1] * a.T / group;
    parallel_for(ceil_div(last - first, W), 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = first + begin * W; i < smaller(first + end * W, last); i += W)
        work(i, int(smaller(W, last - i)));
    });
  }
  return {};
}

}  // namespace

Status kv_quantize(const KvArgs& a) {
  const auto kernel = a.bits == 4 ? quantize<4> : quantize<8>;
  return blocks(a, [&](int64_t first, int groups) {
    kernel(static_cast<const f16*>(a.x) + first * group, static_cast<uint8_t*>(a.codes) + first * group * a.bits / 8,
           static_cast<f16*>(a.scales) + first * 2, groups);
  });
}

Status kv_dequantize(const KvArgs& a) {
  const auto kernel = a.bits == 4 ? dequantize<4> : dequantize<8>;
  return blocks(a, [&](int64_t first, int groups) {
    kernel(static_cast<f16*>(a.x) + first * group, static_cast<const uint8_t*>(a.codes) + first * group * a.bits / 8,
           static_cast<const f16*>(a.scales) + first * 2, groups);
  });
}

}  // namespace nybble::cpu::NYBBLE_ISA
