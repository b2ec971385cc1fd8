// Softmax over blocks of keys with a running maximum, so that no score matrix is ever whole in memory. The rows of one
// problem are all queries (t, g) that share a KV head, row = t * G + g, so that a block of K and V is read once for
// all.
#include "ops/attention.h"

#include <atomic>
#include <limits>

#include "cpu/scratch.h"
#include "cpu/simd/tile.h"
#include "cpu/threads.h"

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int W = Vec::width;
constexpr int kFew = 8;       // up to this many rows: dot products straight from K; more: register tiles
constexpr int kFewKeys = 64;  // keys of one block there
constexpr int kQueries = 64;  // rows of one block of tiles
constexpr int kKeys = 112 / Vec::tile_rows * Vec::tile_rows;
constexpr int kDepth = 256;  // channels of one pass over K
constexpr int kKeyStride = kDepth + 16;
constexpr float kNone = -std::numeric_limits<float>::infinity();

static_assert(kQueries % kTileColumns == 0 && kFewKeys % W == 0, "whole tiles and vectors");

// What one task works on: rows [row0, row0 + rows) of KV head `head` of sequence b, keys [from, to).
struct Task {
  int64_t b, head, row0, rows, from, to;
};

// Running state of the rows: largest score, sum of weights, weighted sum of V (rows `stride` apart).
struct State {
  float *largest, *sum, *out;
  int64_t stride;
};

struct Shape {
  const AttentionArgs& a;
  int64_t G = a.H / a.Hk, rows = a.T * G, padded = ceil_div(a.D, kTileColumns) * kTileColumns;
  int64_t block = rows <= kFew ? kFew : kQueries;

  int64_t length(int64_t b) const { return a.lengths ? a.lengths[b] : a.S; }
  int64_t longest() const {  // of all sequences: a cache has room for more
    int64_t n = 0;
    for (int64_t b = 0; b < a.B; ++b) n = larger(n, length(b));
    return n;
  }
  int64_t position(int64_t b, int64_t row) const { return length(b) - a.T + row / G; }
  // Visible keys of a row: [first, last).
  int64_t first(int64_t b, int64_t row) const { return a.window > 0 ? larger(0, position(b, row) - a.window + 1) : 0; }
  int64_t last(int64_t b, int64_t row) const {
    return a.causal ? larger(0, smaller(length(b), position(b, row) + 1)) : length(b);
  }
  template <typename T>
  const T* query(const Task& t, int64_t r) const {
    const int64_t row = t.row0 + r;
    return static_cast<const T*>(a.q) + t.b * a.q_stride_b + row / G * a.q_stride_t +
           (t.head * G + row % G) * a.q_stride_h;
  }
  template <typename T>
  const T* keys(const Task& t, int64_t s) const {
    return static_cast<const T*>(a.k) + t.b * a.k_stride_b + s * a.k_stride_s + t.head * a.k_stride_h;
  }
  template <typename T>
  const T* values(const Task& t, int64_t s) const {
    return static_cast<const T*>(a.v) + t.b * a.v_stride_b + s * a.v_stride_s + t.head * a.v_stride_h;
  }
};

float exp1(float x) {
  float lanes[W];
  exp(Vec::set(x)).store(lanes);
  return lanes[0];
}

// ---- few rows ----

// Asks for a row that is wanted soon: a core that waits for each row reads memory at half its speed. Past the end it is
// harmless: a prefetch never faults.
template <typename T>
inline void prefetch_row(const T* row, int64_t D) {
  for (int64_t d = 0; d < D; d += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + d);
}

// scores[r, i] = q[r] . k[i]. While a block's keys are read, its values and the next block's keys are on their way.
template <int R, typename T>
void scores_few(const float* q, int64_t q_stride, const T* k, int64_t k_stride, const T* v, int64_t v_stride,
                int64_t keys, int64_t D, float* scores) {
  for (int64_t i = 0; i < keys; ++i, k += k_stride) {
    if (v) {
      prefetch_row(v + i * v_stride, D);
      prefetch_row(k + kFewKeys * k_stride, D);
    }
    Vec sum[R];
    for (int r = 0; r < R; ++r) sum[r] = Vec::zero();
    int64_t d = 0;
    for (; d + W <= D; d += W) {
      const Vec v = Vec::load(k + d);
      for (int r = 0; r < R; ++r) sum[r] = fma(v, Vec::load(q + r * q_stride + d), sum[r]);
    }
    if (d < D) {
      const Vec v = Vec::load_n(k + d, int(D - d));
      for (int r = 0; r < R; ++r) sum[r] = fma(v, Vec::load(q + r * q_stride + d), sum[r]);
    }
    for (int r = 0; r < R; ++r) scores[r * kFewKeys + i] = sum[r].hsum();
  }
}

// out[r, d...] += sum over i of weight[r, i] * v[i, d...], over N vectors, the last of `tail` lanes.
template <int R, int N, typename T>
void values_few(const float* weight, const T* v, int64_t v_stride, int64_t keys, float* out, int64_t out_stride,
                int tail) {
  Vec sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) sum[r][j] = Vec::load(out + r * out_stride + j * W);
  for (int64_t i = 0; i < keys; ++i, v += v_stride) {
    Vec x[N];
    for (int j = 0; j < N; ++j) x[j] = j + 1 == N && tail < W ? Vec::load_n(v + j * W, tail) : Vec::load(v + j * W);
    for (int r = 0; r < R; ++r) {
      const Vec w = Vec::set(weight[r * kFewKeys + i]);
      for (int j = 0; j < N; ++j) sum[r][j] = fma(w, x[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) sum[r][j].store(out + r * out_stride + j * W);
}

constexpr int vectors_for(int rows) {  // as many as the registers hold beside each other
  const int fit = Vec::tile_rows * Vec::tile_vecs / rows;
  return fit >= 8 ? 8 : fit >= 4 ? 4 : 2;
}

// One block of keys for R rows.
template <int R, typename T>
void block_few(const Shape& shape, const Task& t, int64_t r0, int64_t s, int64_t keys, const float* q,
               const State& state) {
  const AttentionArgs& a = shape.a;
  float weight[R * kFewKeys];
  const T* v = shape.values<T>(t, s);
  scores_few<R>(q + r0 * shape.padded, shape.padded, shape.keys<T>(t, s), a.k_stride_s, r0 == 0 ? v : nullptr,
                a.v_stride_s, keys, a.D, weight);
  for (int r = 0; r < R; ++r) {
    float* w = weight + r * kFewKeys;
    const int64_t row = t.row0 + r0 + r, first = shape.first(t.b, row) - s, last = shape.last(t.b, row) - s;
    for (int64_t i = 0; i < smaller(first, keys); ++i) w[i] = kNone;
    for (int64_t i = larger(0, last); i < keys; ++i) w[i] = kNone;
    for (int64_t i = keys; i < kFewKeys; ++i) w[i] = kNone;
    Vec top = Vec::load(w);
    for (int i = W; i < kFewKeys; i += W) top = max(top, Vec::load(w + i));
    float &largest = state.largest[r0 + r], &sum = state.sum[r0 + r];
    const float before = largest, now = top.hmax();
    if (now > largest) largest = now;
    const float base = largest == kNone ? 0.0f : largest;  // nothing seen yet: every weight is 0
    Vec added = Vec::zero();
    for (int i = 0; i < kFewKeys; i += W) {
      const Vec e = exp(Vec::load(w + i) - Vec::set(base));
      e.store(w + i);
      added = added + e;
    }
    const float fade = exp1(before - base);
    sum = sum * fade + added.hsum();
    if (fade != 1.0f) {
      float* out = state.out + (r0 + r) * state.stride;
      for (int64_t d = 0; d < shape.padded; d += W) (Vec::load(out + d) * Vec::set(fade)).store(out + d);
    }
  }
  constexpr int N = vectors_for(R);
  float* out = state.out + r0 * state.stride;
  int64_t d = 0;
  for (; d + N * W <= a.D; d += N * W) values_few<R, N>(weight, v + d, a.v_stride_s, keys, out + d, state.stride, W);
  for (; d < a.D; d += W)
    values_few<R, 1>(weight, v + d, a.v_stride_s, keys, out + d, state.stride, int(smaller(W, a.D - d)));
}

template <typename T>
void run_few(const Shape& shape, const Task& t, float* work, const State& state) {
  const AttentionArgs& a = shape.a;
  for (int64_t r = 0; r < t.rows; ++r) {
    const T* q = shape.query<T>(t, r);
    for (int64_t d = 0; d < shape.padded; d += W) {
      const int n = int(larger(0, smaller(W, a.D - d)));
      (Vec::load_n(q + (n ? d : 0), n) * Vec::set(a.scale)).store(work + r * shape.padded + d);
    }
  }
  for (int64_t s = t.from; s < t.to; s += kFewKeys) {
    const int64_t keys = smaller(kFewKeys, t.to - s);
    for (int64_t r = 0; r < t.rows; r += 4) {
      const int64_t rows = smaller(4, t.rows - r);
      if (rows == 4)
        block_few<4, T>(shape, t, r, s, keys, work, state);
      else if (rows == 3)
        block_few<3, T>(shape, t, r, s, keys, work, state);
      else if (rows == 2)
        block_few<2, T>(shape, t, r, s, keys, work, state);
      else
        block_few<1, T>(shape, t, r, s, keys, work, state);
    }
  }
}

// ---- many rows ----

// Copies a [rows, columns] block as f32, with zeros up to `padded` columns.
template <typename T>
void copy_block(const T* from, int64_t from_stride, int64_t rows, int64_t columns, int64_t padded, float* to,
                int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    int64_t d = 0;
    for (; d + W <= columns; d += W) Vec::load(from + d).store(to + d);
    if (d < columns) {
      Vec::load_n(from + d, int(columns - d)).store(to + d);
      d += W;
    }
    for (; d < padded; d += W) Vec::zero().store(to + d);
  }
}

// Scores lie transposed, [key][query]: the softmax of W queries then goes lane by lane, and the block is already laid
// out as the left side of the product with V.
void soften(const Shape& shape, const Task& t, int64_t s, int64_t keys, float* scores, const State& state,
            float* fade) {
  for (int64_t r0 = 0; r0 < ceil_div(t.rows, W) * W; r0 += W) {
    float *column = scores + r0, first[W], last[W];
    bool all = true;
    for (int j = 0; j < W; ++j) {
      const int64_t row = t.row0 + smaller(r0 + j, t.rows - 1);
      first[j] = float(larger(0, smaller(keys, shape.first(t.b, row) - s)));
      last[j] = float(larger(0, smaller(keys, shape.last(t.b, row) - s)));
      all = all && first[j] == 0 && last[j] == float(keys);
    }
    if (!all) {
      const Vec lo = Vec::load(first), hi = Vec::load(last), none = Vec::set(kNone);
      for (int64_t i = 0; i < keys; ++i) {
        const Vec at = Vec::set(float(i)), x = Vec::load(column + i * kQueries);
        select_lt(at, lo, none, select_lt(at, hi, x, none)).store(column + i * kQueries);
      }
    }
    const Vec before = Vec::load(state.largest + r0);
    Vec top[4] = {before, before, before, before};
    for (int64_t i = 0; i < keys; ++i) top[i % 4] = max(top[i % 4], Vec::load(column + i * kQueries));
    const Vec now = max(max(top[0], top[1]), max(top[2], top[3]));
    now.store(state.largest + r0);
    // Nothing seen yet: every weight is 0.
    const Vec base = select_lt(Vec::set(kNone), now, now, Vec::zero());
    Vec added = Vec::zero();
    for (int64_t i = 0; i < keys; ++i) {
      const Vec e = exp(Vec::load(column + i * kQueries) - base);
      e.store(column + i * kQueries);
      added = added + e;
    }
    const Vec f = exp(before - base);
    f.store(fade + r0);
    fma(Vec::load(state.sum + r0), f, added).store(state.sum + r0);
  }
}

template <typename T>
void run_many(const Shape& shape, const Task& t, float* work, const State& state) {
  const AttentionArgs& a = shape.a;
  const int64_t columns = ceil_div(t.rows, kTileColumns) * kTileColumns;
  float* q = work;  // [D][kQueries]
  float* scores = q + a.D * kQueries;
  float* block = scores + kKeys * kQueries;  // K [kKeys][kKeyStride], then V [kKeys][padded]
  float fade[kQueries];
  for (int64_t r = 0; r < columns; ++r) {
    const T* from = shape.query<T>(t, smaller(r, t.rows - 1));
    for (int64_t d = 0; d < a.D; ++d) q[d * kQueries + r] = to_float(from[d]) * a.scale;
  }
  for (int64_t s = t.from; s < t.to; s += kKeys) {
    const int64_t keys = smaller(kKeys, t.to - s);
    for (int64_t d = 0; d < a.D; d += kDepth) {
      const int64_t depth = smaller(kDepth, a.D - d);
      copy_block(shape.keys<T>(t, s) + d, a.k_stride_s, keys, depth, depth, block, kKeyStride);
      multiply<kKeyStride, 1>(keys, columns, block, q + d * kQueries, kQueries, scores, kQueries, depth, d > 0);
    }
    soften(shape, t, s, keys, scores, state, fade);
    for (int64_t r = 0; r < t.rows; ++r) {
      if (fade[r] == 1.0f) continue;
      float* out = state.out + r * state.stride;
      for (int64_t d = 0; d < shape.padded; d += W) (Vec::load(out + d) * Vec::set(fade[r])).store(out + d);
    }
    copy_block(shape.values<T>(t, s), a.v_stride_s, keys, a.D, shape.padded, block, shape.padded);
    multiply<1, kQueries>(t.rows, shape.padded, scores, block, shape.padded, state.out, state.stride, keys, true);
  }
}

// ---- both ----

int64_t work_floats(const Shape& s) {
  if (s.block == kFew) return kFew * s.padded;
  return (s.a.D + kKeys) * kQueries + kKeys * larger(kKeyStride, s.padded);
}
int64_t state_floats(const Shape& s) { return s.block * (2 + s.padded); }

State state_at(const Shape& s, float* p) { return {p, p + s.block, p + 2 * s.block, s.padded}; }

void clear(const Shape& s, const State& state) {
  for (int64_t r = 0; r < s.block; ++r) {
    state.largest[r] = kNone;
    state.sum[r] = 0;
  }
  std::memset(state.out, 0, size_t(s.block * s.padded) * sizeof(float));
}

template <typename T>
void finish(const Shape& s, const Task& t, const State& state) {
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t row = t.row0 + r;
    T* o = static_cast<T*>(s.a.o) + ((t.b * s.a.T + row / s.G) * s.a.H + t.head * s.G + row % s.G) * s.a.D;
    const Vec inv = Vec::set(state.sum[r] == 0 ? 0.0f : 1.0f / state.sum[r]);
    const float* out = state.out + r * state.stride;
    for (int64_t d = 0; d < s.a.D; d += W) (Vec::load(out + d) * inv).store_n(o + d, int(smaller(W, s.a.D - d)));
  }
}

// Adds the state of another part of the keys.
void merge(const Shape& s, int64_t rows, const State& into, const State& other) {
  for (int64_t r = 0; r < rows; ++r) {
    const float before = into.largest[r], now = before > other.largest[r] ? before : other.largest[r];
    if (now == kNone) continue;
    const float f = exp1(before - now), g = exp1(other.largest[r] - now);
    into.largest[r] = now;
    into.sum[r] = into.sum[r] * f + other.sum[r] * g;
    float *x = into.out + r * s.padded, *y = other.out + r * s.padded;
    for (int64_t d = 0; d < s.padded; d += W)
      fma(Vec::load(x + d), Vec::set(f), Vec::load(y + d) * Vec::set(g)).store(x + d);
  }
}

template <typename T>
Status run(const AttentionArgs& a) {
  const Shape shape{a};
  const int64_t blocks = ceil_div(shape.rows, shape.block), problems = a.B * a.Hk * blocks;
  // Few problems and many keys: several threads share one problem's keys.
  const int64_t wanted = ceil_div(threads(), larger(1, problems));
  const int64_t longest = shape.longest(), parts = larger(1, smaller(wanted, longest / 256));
  const int64_t part_size = state_floats(shape), work = work_floats(shape);
  float* saved = nullptr;
  if (parts > 1) {
    saved = static_cast<float*>(thread_scratch(Slot::attention_parts, problems * parts * part_size * 4));
    if (!saved) return {"attention: out of memory"};
  }
  const auto task_of = [&](int64_t problem) {
    Task t;
    const int64_t i = problem % blocks;
    // First, last, second, last but one...: under a causal mask, neighbours then add up to the same work.
    const int64_t block = i % 2 ? blocks - 1 - i / 2 : i / 2;
    t.b = problem / blocks / a.Hk;
    t.head = problem / blocks % a.Hk;
    t.row0 = block * shape.block;
    t.rows = smaller(shape.block, shape.rows - t.row0);
    t.from = smaller(shape.first(t.b, t.row0), a.S);
    t.to = larger(t.from, shape.last(t.b, t.row0 + t.rows - 1));
    return t;
  };
  std::atomic<bool> failed{false};
  const int64_t cost = larger(1, smaller(shape.rows, shape.block) * a.D * (longest / parts));
  parallel_for(problems * parts, larger(1, 65536 / cost), [&](int64_t begin, int64_t end) {
    float* mine = static_cast<float*>(thread_scratch(Slot::attention_task, (work + part_size) * 4));
    if (!mine) {
      failed = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      Task t = task_of(i / parts);
      if (parts > 1) {
        const int64_t step = ceil_div(t.to - t.from, parts), end_of_all = t.to;
        t.from = smaller(t.from + i % parts * step, end_of_all);
        t.to = smaller(t.from + step, end_of_all);
      }
      const State state = state_at(shape, parts > 1 ? saved + i * part_size : mine + work);
      clear(shape, state);
      if (shape.block == kFew)
        run_few<T>(shape, t, mine, state);
      else
        run_many<T>(shape, t, mine, state);
      if (parts == 1) finish<T>(shape, t, state);
    }
  });
  if (failed) return {"attention: out of memory"};
  for (int64_t p = 0; parts > 1 && p < problems; ++p) {
    const Task t = task_of(p);
    const State first = state_at(shape, saved + p * parts * part_size);
    for (int64_t i = 1; i < parts; ++i)
      merge(shape, t.rows, first, state_at(shape, saved + (p * parts + i) * part_size));
    finish<T>(shape, t, first);
  }
  return {};
}

}  // namespace

Status attention(const AttentionArgs& a) {
  Status status;
  with_type(a.dtype, [&](auto t) { status = run<decltype(t)>(a); });
  return status;
}

}  // namespace nybble::cpu::NYBBLE_ISA
