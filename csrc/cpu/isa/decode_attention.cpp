// One query a head over a ring of keys and values, with a running maximum. The heads that share a KV head are taken together,
// up to kHeads at a time, so that keys and values are read once for all of them.
//
// Keys of one KV head: [D/X][L][X]. In a chunk (D/X) the slots lie side by side, X channels each: a vector holds the same
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

// Heads [h0, h0 + R) of sequence b, KV head g, and their running state: the padded rows of q and out are `padded` floats.
struct Work {
  int64_t b, g, h0, padded, repeat;
  float *q, *out;  // q [R][D/X][repeat], out [R][padded]
  float largest[kHeads], sum[kHeads];
};

// repeat: floats of q that one chunk meets, a whole number of vectors and of chunks.
int64_t repeat_of(const DecodeAttentionArgs& a) { return larger(W, a.X); }

template <typename T>
void load_queries(const DecodeAttentionArgs& a, int R, const Work& w) {
  for (int r = 0; r < R; ++r) {
    const T* q = static_cast<const T*>(a.q) + w.b * a.q_stride_b + (w.h0 + r) * a.q_stride_h;
    float* out = w.q + r * (a.D / a.X) * w.repeat;
    for (int64_t c = 0; c < a.D / a.X; ++c)
      for (int64_t i = 0; i < w.repeat; ++i) out[c * w.repeat + i] = to_float(q[c * a.X + i % a.X]) * a.scale;
  }
}

// scores[r][i] = q[r] . k[s + i] for i < count.
template <int R, typename T>
void add_scores(const DecodeAttentionArgs& a, const Work& w, int64_t s, int64_t count, float (*scores)[kSlots]) {
  const int64_t chunks = a.D / a.X, flat = count * a.X, q_stride = chunks * w.repeat;
  const T* keys = static_cast<const T*>(a.k) + ((w.b * a.Hk + w.g) * chunks * a.L + s) * a.X;
  for (int64_t f = 0; f < flat; f += kVecs * W) {
    Vec sum[R][kVecs];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVecs; ++j) sum[r][j] = Vec::zero();
    const bool whole = f + kVecs * W <= flat;
    for (int64_t c = 0; c < chunks; ++c) {
      const T* k = keys + c * a.L * a.X + f;
      const float* q = w.q + c * w.repeat;
      Vec key[kVecs];
      for (int j = 0; j < kVecs; ++j) {
        const int n = int(larger(0, smaller(W, flat - f - j * W)));
        key[j] = whole ? Vec::load(k + j * W) : n > 0 ? Vec::load_n(k + j * W, n) : Vec::zero();
      }
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < kVecs; ++j) sum[r][j] = fma(key[j], Vec::load(q + r * q_stride + j * W % w.repeat), sum[r][j]);
    }
    for (int r = 0; r < R; ++r) {
      float lanes[kVecs * W];
      for (int j = 0; j < kVecs; ++j) sum[r][j].store(lanes + j * W);
      const int64_t first = f / a.X, slots = smaller(kVecs * W / a.X, count - first);
      for (int64_t i = 0; i < slots; ++i) {
        float dot = 0;
        for (int64_t e = 0; e < a.X; ++e) dot += lanes[i * a.X + e];
        scores[r][first + i] = dot;
      }
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
    Vec sum[R][kVecs];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVecs; ++j) sum[r][j] = Vec::load(w.out + r * w.padded + d + j * W);
    for (int64_t i = 0; i < count; ++i) {
      const T* v = values + i * a.D + d;
      Vec x[kVecs];
      for (int j = 0; j < kVecs; ++j) {
        const int n = int(larger(0, smaller(W, a.D - d - j * W)));
        x[j] = whole ? Vec::load(v + j * W) : n > 0 ? Vec::load_n(v + j * W, n) : Vec::zero();
      }
      for (int r = 0; r < R; ++r) {
        const Vec weight = Vec::set(weights[r][i]);
        for (int j = 0; j < kVecs; ++j) sum[r][j] = fma(weight, x[j], sum[r][j]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVecs; ++j) sum[r][j].store(w.out + r * w.padded + d + j * W);
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
    add_scores<R, T>(a, w, s, count, scores);
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
  const int64_t repeat = repeat_of(a), padded = ceil_div(a.D, kVecs * W) * kVecs * W;
  const int64_t q_floats = a.D / a.X * repeat * kHeads, floats = q_floats + padded * kHeads;
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
      w.repeat = repeat;
      w.q = memory;
      w.out = memory + q_floats;
      switch (smaller(kHeads, (w.g + 1) * group - w.h0)) {
        case 1: attend<1, T>(a, w); break;
        case 2: attend<2, T>(a, w); break;
        case 3: attend<3, T>(a, w); break;
        default: attend<kHeads, T>(a, w);
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
