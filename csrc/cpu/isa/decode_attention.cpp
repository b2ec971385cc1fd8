// One query a head over a ring of keys and values, with a running maximum. The heads that share a KV head are taken
// together, up to kHeads at a time, so that keys and values are read once for all of them.
//
// Keys of one KV head: [D/X][L][X]. In a chunk the slots lie side by side, X channels each: a vector holds the same
// channels of neighbouring slots, or half of one slot's, and meets a vector of q that repeats the chunk's X channels.
#include "ops/decode_attention.h"

#include <atomic>
#include <limits>

#include "cpu/scratch.h"
#include "cpu/simd/vec.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;
constexpr int kHeads = 4;
constexpr int kSlots = 64;  // of one block
constexpr int kVecs = 4;    // vectors of keys, or of values, that are summed beside each other
constexpr float kNone = -std::numeric_limits<float>::infinity();

static_assert(kSlots % W == 0, "whole vectors of scores");

template <typename T>
constexpr int64_t kX = 16 / sizeof(T);  // channels of a chunk
// Floats of q that one chunk meets: whole vectors and whole chunks.
template <typename T>
constexpr int64_t kRepeat = W > kX<T> ? W : kX<T>;

// Heads [h0, h0 + R) of sequence b, on KV head g, and their running state.
struct Work {
  int64_t b, g, h0, padded;
  float *q, *out;  // q [R][D/X][kRepeat], out [R][padded]
  float largest[kHeads], sum[kHeads];
};

template <typename T>
void load_queries(const DecodeAttentionArgs& a, int R, const Work& w) {
  float* out = w.q;
  for (int r = 0; r < R; ++r) {
    const T* q = static_cast<const T*>(a.q) + w.b * a.q_stride_b + (w.h0 + r) * a.q_stride_h;
    for (int64_t c = 0; c < a.D; c += kX<T>)
      for (int64_t i = 0; i < kRepeat<T>; ++i) *out++ = to_float(q[c + i % kX<T>]) * a.scale;
  }
}

// kVecs vectors from p on, of which `count` elements are there; the rest is 0.
template <typename T>
inline void load_some(const T* p, int64_t count, Vec (&v)[kVecs]) {
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) {
    const int n = int(larger(0, smaller(W, count - j * W)));
    v[j] = n > 0 ? Vec::load_n(p + j * W, n) : Vec::zero();
  }
}
template <typename T>
inline void load_all(const T* p, Vec (&v)[kVecs]) {
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) v[j] = Vec::load(p + j * W);
}

// scores[r][i] = q[r] . k[s + i] for i < count. Every loop over `sum` is unrolled, or the compiler would keep it in
// memory.
template <int R, typename T>
void find_scores(const DecodeAttentionArgs& a, const Work& w, int64_t s, int64_t count, float (*scores)[kSlots]) {
  constexpr int64_t X = kX<T>;
  const int64_t chunks = a.D / X, flat = count * X, q_stride = chunks * kRepeat<T>;
  const T* keys = static_cast<const T*>(a.k) + ((w.b * a.Hk + w.g) * chunks * a.L + s) * X;
  for (int64_t f = 0; f < flat; f += kVecs * W) {
    Vec sum[R][kVecs];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[r][j] = Vec::zero();
    const bool whole = f + kVecs * W <= flat;
    for (int64_t c = 0; c < chunks; ++c) {
      const float* q = w.q + c * kRepeat<T>;
      Vec key[kVecs];
      if (whole)
        load_all(keys + c * a.L * X + f, key);
      else
        load_some(keys + c * a.L * X + f, flat - f, key);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j)
          sum[r][j] = fma(key[j], Vec::load(q + r * q_stride + j * W % kRepeat<T>), sum[r][j]);
    }
    float lanes[R][kVecs * W];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[r][j].store(lanes[r] + j * W);
    const int64_t first = f / X, slots = smaller(kVecs * W / X, count - first);
    for (int r = 0; r < R; ++r)
      for (int64_t i = 0; i < slots; ++i) {
        const float* part = lanes[r] + i * X;
        float dot = (part[0] + part[1]) + (part[2] + part[3]);
        if constexpr (X == 8) dot += (part[4] + part[5]) + (part[6] + part[7]);
        scores[r][first + i] = dot;
      }
  }
}

float exp1(float x) {
  float lanes[W];
  exp(Vec::set(x)).store(lanes);
  return lanes[0];
}

// Scores of row r to weights; the state moves to the new largest score.
void soften(Work& w, int r, float* scores, int64_t count) {
  for (int64_t i = count; i < kSlots; ++i) scores[i] = kNone;
  Vec top = Vec::load(scores);
  for (int i = W; i < kSlots; i += W) top = max(top, Vec::load(scores + i));
  const float before = w.largest[r], now = top.hmax();
  if (now > before) w.largest[r] = now;
  const float base = w.largest[r] == kNone ? 0.0f : w.largest[r];
  Vec added = Vec::zero();
  for (int i = 0; i < kSlots; i += W) {
    const Vec e = exp(Vec::load(scores + i) - Vec::set(base));
    e.store(scores + i);
    added = added + e;
  }
  const float fade = exp1(before - base);
  w.sum[r] = w.sum[r] * fade + added.hsum();
  if (fade == 1.0f) return;
  float* out = w.out + r * w.padded;
  for (int64_t d = 0; d < w.padded; d += W) (Vec::load(out + d) * Vec::set(fade)).store(out + d);
}

// out[r, d...] += sum over i of weights[r][i] * v[s + i, d...]
template <int R, typename T>
void add_values(const DecodeAttentionArgs& a, const Work& w, int64_t s, int64_t count, const float (*weights)[kSlots]) {
  const T* values = static_cast<const T*>(a.v) + ((w.b * a.Hk + w.g) * a.L + s) * a.D;
  for (int64_t d = 0; d < a.D; d += kVecs * W) {
    const bool whole = d + kVecs * W <= a.D;
    float* out = w.out + d;
    Vec sum[R][kVecs];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[r][j] = Vec::load(out + r * w.padded + j * W);
    for (int64_t i = 0; i < count; ++i) {
      Vec x[kVecs];
      if (whole)
        load_all(values + i * a.D + d, x);
      else
        load_some(values + i * a.D + d, a.D - d, x);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec weight = Vec::set(weights[r][i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) sum[r][j] = fma(weight, x[j], sum[r][j]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[r][j].store(out + r * w.padded + j * W);
  }
}

template <int R, typename T>
void attend(const DecodeAttentionArgs& a, Work& w) {
  load_queries<T>(a, R, w);
  std::memset(w.out, 0, size_t(R * w.padded) * sizeof(float));
  for (int r = 0; r < R; ++r) w.largest[r] = kNone, w.sum[r] = 0;
  const int64_t length = a.lengths[w.b], filled = smaller(length, a.L), newest = filled > 0 ? (length - 1) % a.L : 0;
  for (int64_t s = 0; s < filled; s += kSlots) {
    const int64_t count = smaller(kSlots, filled - s);
    float scores[R][kSlots];
    find_scores<R, T>(a, w, s, count, scores);
    for (int r = 0; r < R; ++r) {
      for (int64_t i = 0; a.slopes && i < count; ++i) {
        const int64_t back = newest - (s + i), age = back < 0 ? back + a.L : back;  // tokens since this slot's one
        scores[r][i] -= a.slopes[w.h0 + r] * float(age);
      }
      soften(w, r, scores[r], count);
    }
    add_values<R, T>(a, w, s, count, scores);
  }
  for (int r = 0; r < R; ++r) {
    T* o = static_cast<T*>(a.o) + (w.b * a.H + w.h0 + r) * a.D;
    const Vec inverse = Vec::set(w.sum[r] == 0 ? 0.0f : 1.0f / w.sum[r]);
    for (int64_t d = 0; d < a.D; d += W)
      (Vec::load(w.out + r * w.padded + d) * inverse).store_n(o + d, int(smaller(W, a.D - d)));
  }
}

template <typename T>
Status run(const DecodeAttentionArgs& a) {
  const int64_t group = a.H / a.Hk, batches = ceil_div(group, kHeads);
  const int64_t padded = ceil_div(a.D, kVecs * W) * kVecs * W;
  const int64_t q_floats = a.D / kX<T> * kRepeat<T> * kHeads, floats = q_floats + padded * kHeads;
  std::atomic<bool> failed{false};
  const int64_t cost = larger(1, smaller(group, kHeads) * a.D * smaller(a.L, 4096));
  parallel_for(a.B * a.Hk * batches, larger(1, 65536 / cost), [&](int64_t begin, int64_t end) {
    float* memory = static_cast<float*>(thread_scratch(Slot::decode_attention, floats * 4));
    if (!memory) {
      failed = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      Work w{};
      w.b = i / batches / a.Hk;
      w.g = i / batches % a.Hk;
      w.h0 = w.g * group + i % batches * kHeads;
      w.padded = padded;
      w.q = memory;
      w.out = memory + q_floats;
      switch (smaller(kHeads, (w.g + 1) * group - w.h0)) {
        case 1:
          attend<1, T>(a, w);
          break;
        case 2:
          attend<2, T>(a, w);
          break;
        case 3:
          attend<3, T>(a, w);
          break;
        default:
          attend<kHeads, T>(a, w);
      }
    }
  });
  if (failed) return {"decode_attention: out of memory"};
  return {};
}

}  // namespace

Status decode_attention(const DecodeAttentionArgs& a) {
  Status status;
  with_type(a.dtype, [&](auto t) { status = run<decltype(t)>(a); });
  return status;
}

}  // namespace nybble::cpu::NYBBLE_ISA
