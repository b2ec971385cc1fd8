// One KV head of one sequence at a time: kTokens keys are made floats, meet all the queries that share the head, and
// their scores become weights against a running maximum; then the same tokens' values. Stored bytes are read once.
#include "ops/paged_attention.h"

#include <atomic>
#include <limits>

#include "cpu/scratch.h"
#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;
constexpr int kTokens = 32;
constexpr float kNone = -std::numeric_limits<float>::infinity();
static_assert(kTokens % W == 0, "whole vectors of scores");

// Sizes of one task and its floats: rows [kTokens][padded], q and out [R][padded], scores [R][kTokens], state [R][2].
struct Shape {
  const PagedAttentionArgs& a;
  int64_t group = a.H / a.Hk, R = a.T * group, padded = ceil_div(a.D, W) * W;
  int64_t floats() const { return (kTokens + 2 * R) * padded + R * (kTokens + 2); }
};

// Elements of even and of odd index, each a vector of 32, times the Hadamard matrix.
void rotate(float (&v)[64]) {
  for (int step = 2; step < 64; step *= 2)
    for (int i = 0; i < 64; i += 2 * step)
      for (int j = i; j < i + step; ++j) {
        const float low = v[j], high = v[j + step];
        v[j] = low + high;
        v[j + step] = low - high;
      }
}

// The head's part of the rotated groups of one token; groups are counted from its first head.
void read_codes(const KvPages& kv, const uint8_t* bytes, const f16* scales, int64_t begin, int64_t end, float* to) {
  for (int64_t first = begin / 64 * 64; first < end; first += 64) {
    float v[64];
    for (int i = 0; i < 64; ++i) {
      const int64_t at = first + i;
      const int code = kv.kind == KvKind::q8 ? bytes[at] - 128 : (at % 2 ? bytes[at / 2] >> 4 : bytes[at / 2] & 15) - 8;
      v[i] = float(code) * to_float(scales[at / 32]) * (1.0f / 32);
    }
    rotate(v);
    for (int64_t at = larger(first, begin); at < smaller(first + 64, end); ++at) to[at - begin] = v[at - first];
  }
}

// Tokens [s, s + count) of sequence b, KV head g, as rows of floats; the padding of a row is 0.
template <typename T>
void read_rows(const Shape& shape, const KvPages& kv, int64_t b, int64_t g, int64_t s, int64_t count, float* rows) {
  const PagedAttentionArgs& a = shape.a;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t page = a.block_table ? a.block_table[b * a.block_table_stride + (s + i) / a.page] : b;
    const int64_t slot = a.block_table ? (s + i) % a.page : s + i;
    const int64_t token = page * kv.stride_page + slot * kv.stride_slot, head = token + g * kv.stride_head;
    float* row = rows + i * shape.padded;
    std::memset(row + a.D, 0, size_t(shape.padded - a.D) * sizeof(float));
    if (kv.kind == KvKind::plain) {
      const T* from = static_cast<const T*>(kv.data) + head;
      for (int64_t d = 0; d < a.D; d += W) Vec::load_n(from + d, int(smaller(W, a.D - d))).store(row + d);
    } else if (kv.kind == KvKind::fp8) {
      const uint8_t* from = static_cast<const uint8_t*>(kv.data) + head;
      for (int64_t d = 0; d < a.D; ++d) row[d] = to_float(f16{uint16_t(from[d] << 8)});
    } else {
      const f16* scales = static_cast<const f16*>(kv.scales) + page * kv.scales_page + slot * kv.scales_slot;
      read_codes(kv, static_cast<const uint8_t*>(kv.data) + token, scales, g * a.D, (g + 1) * a.D, row);
    }
  }
}

float exp1(float x) {
  float lanes[W];
  exp(Vec::set(x)).store(lanes);
  return lanes[0];
}

float tanh1(float x) {
  const float e = exp1(-2.0f * (x < 0 ? -x : x)), y = (1.0f - e) / (1.0f + e);
  return x < 0 ? -y : y;
}

// Scores of one query to weights; the running sum and its parts move to the new largest score.
void soften(float* scores, float& largest, float& sum, float* out, int64_t padded) {
  float top = largest;
  for (int i = 0; i < kTokens; ++i) top = scores[i] > top ? scores[i] : top;
  const float base = top == kNone ? 0.0f : top, fade = largest == top ? 1.0f : exp1(largest - top);
  largest = top;
  Vec added = Vec::zero();
  for (int i = 0; i < kTokens; i += W) {
    const Vec e = exp(Vec::load(scores + i) - Vec::set(base));
    e.store(scores + i);
    added = added + e;
  }
  sum = sum * fade + added.hsum();
  if (fade == 1.0f) return;
  for (int64_t d = 0; d < padded; d += W) (Vec::load(out + d) * Vec::set(fade)).store(out + d);
}

template <typename T>
void attend(const Shape& shape, int64_t b, int64_t g, float* memory) {
  const PagedAttentionArgs& a = shape.a;
  const int64_t R = shape.R, padded = shape.padded, length = a.lengths[b];
  float *rows = memory, *q = rows + kTokens * padded, *out = q + R * padded, *scores = out + R * padded;
  float *largest = scores + R * kTokens, *sum = largest + R;
  std::memset(q, 0, size_t(2 * R * padded) * sizeof(float));
  for (int64_t r = 0; r < R; ++r) {
    const T* from = static_cast<const T*>(a.q) + b * a.q_stride_b + r / shape.group * a.q_stride_t +
                    (g * shape.group + r % shape.group) * a.q_stride_h;
    for (int64_t d = 0; d < a.D; ++d) q[r * padded + d] = to_float(from[d]) * a.scale;
    largest[r] = kNone;
    sum[r] = 0;
  }
  const int64_t first = a.window > 0 ? larger(0, length - a.T - a.window + 1) : 0;
  for (int64_t s = first; s < length; s += kTokens) {
    const int64_t count = smaller(kTokens, length - s);
    read_rows<T>(shape, a.keys, b, g, s, count, rows);
    for (int64_t r = 0; r < R; ++r) {
      const int64_t place = length - a.T + r / shape.group;
      float* mine = scores + r * kTokens;
      for (int64_t i = 0; i < kTokens; ++i) {
        const int64_t back = place - (s + i);
        mine[i] = kNone;
        if (i >= count || back < 0 || (a.window > 0 && back >= a.window)) continue;
        Vec dot = Vec::zero();
        for (int64_t d = 0; d < padded; d += W)
          dot = fma(Vec::load(q + r * padded + d), Vec::load(rows + i * padded + d), dot);
        mine[i] = dot.hsum();
        if (a.softcap > 0) mine[i] = a.softcap * tanh1(mine[i] / a.softcap);
        if (a.slopes) mine[i] -= a.slopes[g * shape.group + r % shape.group] * float(back);
      }
      soften(mine, largest[r], sum[r], out + r * padded, padded);
    }
    read_rows<T>(shape, a.values, b, g, s, count, rows);
    for (int64_t r = 0; r < R; ++r)
      for (int64_t i = 0; i < count; ++i) {
        const Vec weight = Vec::set(scores[r * kTokens + i]);
        if (scores[r * kTokens + i] == 0) continue;  // a hidden token may hold NaN
        float* to = out + r * padded;
        for (int64_t d = 0; d < padded; d += W)
          fma(weight, Vec::load(rows + i * padded + d), Vec::load(to + d)).store(to + d);
      }
  }
  for (int64_t r = 0; r < R; ++r) {
    const int64_t h = g * shape.group + r % shape.group;
    T* o = static_cast<T*>(a.o) + ((b * a.T + r / shape.group) * a.H + h) * a.D;
    const Vec inverse = Vec::set(sum[r] == 0 ? 0.0f : 1.0f / sum[r]);
    for (int64_t d = 0; d < a.D; d += W)
      (Vec::load(out + r * padded + d) * inverse).store_n(o + d, int(smaller(W, a.D - d)));
  }
}

template <typename T>
Status run(const PagedAttentionArgs& a) {
  const Shape shape{a};
  std::atomic<bool> failed{false};
  const int64_t cost = larger(1, shape.R * a.D * smaller(a.n * a.page, 4096));
  parallel_for(a.B * a.Hk, larger(1, 65536 / cost), [&](int64_t begin, int64_t end) {
    float* memory = static_cast<float*>(thread_scratch(Slot::paged_attention, shape.floats() * 4));
    if (!memory) {
      failed = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) attend<T>(shape, i / a.Hk, i % a.Hk, memory);
  });
  if (failed) return {"paged_attention: out of memory"};
  return {};
}

}  // namespace

Status paged_attention(const PagedAttentionArgs& a) {
  Status status;
  with_type(a.dtype, [&](auto t) { status = run<decltype(t)>(a); });
  return status;
}

}  // namespace nybble::cpu::NYBBLE_ISA
