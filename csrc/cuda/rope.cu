// Rotary positions in place, and the same together with the new entries of a key/value cache.
//
// A thread takes one chunk of one head: V channels and their V partners, 16 bytes of each where the layout allows.
//
//   neox  [ chunk's a ....... | chunk's b ....... | not turned ]      gptj  [ a b a b ... | not turned ]
//           ^ c V               ^ R/2 + c V         ^ 2 c V                   ^ 2 c V
//
// A position outside the tables turns by NaN.
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "ops/kv_append.h"
#include "ops/rope.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
  T v[V];
};

template <typename T, int V>
__device__ void load(const T* from, float* to) {
  const auto pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = to_float(pack.v[i]);
}

template <typename T, int V>
__device__ void store(const float* from, T* to) {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.v[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// kAppend: the last Hk of x's heads are new keys, which also go to the cache, and so do the values, not turned.
template <typename T, int V, bool kNeox, bool kAppend>
__global__ void __launch_bounds__(kThreads) rope_kernel(const RopeArgs a,          // x, its tables and positions
                                                        const KvAppendArgs cache,  // for kAppend: v, caches, lengths
                                                        unsigned chunks,           // of a head
                                                        unsigned parts) {          // blocks of a token
  wait_for_previous();
  let_next_begin();
  const unsigned token = blockIdx.x / parts, item = blockIdx.x % parts * kThreads + threadIdx.x;
  const unsigned head = item / chunks, chunk = item % chunks;
  const int64_t b = token / static_cast<unsigned>(a.T), t = token % static_cast<unsigned>(a.T);
  const bool is_value = head >= a.H;
  if (head >= a.H + (kAppend ? cache.Hk : 0)) return;

  T* x = is_value ? static_cast<T*>(const_cast<void*>(cache.v)) + b * cache.v_stride.b + t * cache.v_stride.s +
                        (head - a.H) * cache.v_stride.h
                  : static_cast<T*>(a.x) + b * a.stride_b + t * a.stride_t + head * a.stride_h;
  const int64_t half = a.R / 2;
  const bool turns = !is_value && chunk * V < half;
  const int64_t first = turns && kNeox ? chunk * V : 2 * V * chunk;
  const int64_t second = turns && kNeox ? half + chunk * V : first + V;
  const bool whole = V > 1 || second < a.D;  // an odd D ends in half a chunk
  float y[2 * V];
  load<T, V>(x + first, y);
  if (whole) load<T, V>(x + second, y + V);

  if (turns) {
    const int64_t place = a.positions[token];
    const bool known = place >= 0 && place < a.P;
    float c[V], s[V];
    load<float, V>(a.cos + (known ? place : 0) * half + chunk * V, c);
    load<float, V>(a.sin + (known ? place : 0) * half + chunk * V, s);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float &p = y[kNeox ? i : 2 * i], &q = y[kNeox ? V + i : 2 * i + 1];
      const float before = p;
      p = known ? before * c[i] - q * s[i] : NAN;
      q = known ? q * c[i] + before * s[i] : NAN;
    }
    store<T, V>(y, x + first);
    store<T, V>(y + V, x + second);
  }
  if constexpr (kAppend) {
    const int64_t key_head = head - (a.H - cache.Hk);
    if (key_head < 0) return;
    const int64_t held = cache.lengths[b], n = held < 0 ? 0 : held < cache.S ? held : cache.S;
    const int64_t slot = n - cache.T + t;
    if (slot < 0) return;
    const auto& stride = is_value ? cache.values_stride : cache.keys_stride;
    T* to = static_cast<T*>(is_value ? cache.values : cache.keys) + b * stride.b + slot * stride.s +
            (is_value ? key_head - cache.Hk : key_head) * stride.h;
    store<T, V>(y, to + first);
    if (whole) store<T, V>(y + V, to + second);
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
bool divides(int64_t v, const KvAppendArgs::Strides& s) { return s.b % v == 0 && s.h % v == 0 && s.s % v == 0; }

template <typename T, int V, bool kAppend>
bool fits(const RopeArgs& a, const KvAppendArgs& c) {
  const bool rope = a.R % (2 * V) == 0 && a.stride_b % V == 0 && a.stride_t % V == 0 && a.stride_h % V == 0 &&
                    aligned(a.x) && aligned(a.cos) && aligned(a.sin);
  return rope && (!kAppend || (a.D % (2 * V) == 0 && aligned(c.keys) && aligned(c.values) && aligned(c.v) &&
                               divides(V, c.keys_stride) && divides(V, c.values_stride) && divides(V, c.v_stride)));
}

template <typename T, int V, bool kAppend>
Status run(const RopeArgs& a, const KvAppendArgs& cache, Stream stream) {
  const int64_t chunks = kAppend ? (a.D + 2 * V - 1) / (2 * V) : a.R / 2 / V;
  const int64_t items = (a.H + cache.Hk) * chunks, parts = (items + kThreads - 1) / kThreads;
  if (items > 0x7fffffff || a.B * a.T > 0x7fffffff / parts) return {"rope_: more than 2^31 - 1 blocks"};
  const auto kernel = a.neox ? rope_kernel<T, V, true, kAppend> : rope_kernel<T, V, false, kAppend>;
  return launch(kernel, static_cast<unsigned>(a.B * a.T * parts), kThreads, 0, stream, gpu().sm >= 90, a, cache, chunks,
                parts);
}

template <bool kAppend>
Status choose(const RopeArgs& a, const KvAppendArgs& cache, Stream stream) {
  return with_type(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int V = 16 / sizeof(T);
    return fits<T, V, kAppend>(a, cache) ? run<T, V, kAppend>(a, cache, stream) : run<T, 1, kAppend>(a, cache, stream);
  });
}

}  // namespace

Status rope(const RopeArgs& a, Stream stream) {
  if (a.B * a.T * a.H * a.R == 0) return {};
  return choose<false>(a, KvAppendArgs{}, stream);
}

Status rope_append(const RopeArgs& qk, const KvAppendArgs& cache, Stream stream) {
  if (qk.B * qk.T * qk.H * qk.D == 0) return {};
  return choose<true>(qk, cache, stream);
}

}  // namespace nybble::cuda
