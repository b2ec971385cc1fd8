// Who is a row: the queries (t, g) that share one KV head of one sequence, row = t * G + g, so that a tile of keys and
// values is read once for all of them. What each row may see.
#pragma once
#include <cuda_runtime.h>

#include "cuda/attention/parts.cuh"
#include "ops/attention.h"

namespace nybble::cuda {

struct AttentionRows {
  int b, kv;     // sequence, KV head
  int G, count;  // query heads of a KV head; rows
  int length;    // keys held
  int before;    // position of query 0

  __device__ AttentionRows(const AttentionArgs& a, int problem) {
    b = problem / static_cast<int>(a.Hk), kv = problem % static_cast<int>(a.Hk);
    G = static_cast<int>(a.H / a.Hk);
    count = static_cast<int>(a.T) * G;
    const int64_t held = a.lengths != nullptr ? a.lengths[b] : a.S;
    length = static_cast<int>(held < 0 ? 0 : held < a.S ? held : a.S);
    before = length - static_cast<int>(a.T);
  }
  __device__ int position(int row) const { return before + row / G; }
  // Visible keys of a row: [first, last), both rising with the row.
  __device__ int first(const AttentionArgs& a, int row) const {
    return a.window > 0 ? static_cast<int>(max(int64_t{0}, position(row) - a.window + 1)) : 0;
  }
  __device__ int last(const AttentionArgs& a, int row) const {
    return a.causal ? max(0, min(length, position(row) + 1)) : length;
  }
  // Of those that the rows [row0, row_end) see, the keys [from, to) of one of several equal parts; whole tiles.
  __device__ void keys_of(const AttentionArgs& a, int row0, int row_end, int tile, int part, int parts, int& from,
                          int& to) const {
    from = first(a, row0) / tile * tile, to = last(a, row_end - 1);
    if (parts == 1) return;
    const int step = ((max(0, to - from) + tile - 1) / tile + parts - 1) / parts * tile;
    from += part * step, to = min(to, from + step);
  }
  template <typename T>
  __device__ const T* query(const AttentionArgs& a, int row) const {
    return static_cast<const T*>(a.q) + b * a.q_stride_b + row / G * a.q_stride_t + (kv * G + row % G) * a.q_stride_h;
  }
  template <typename T>
  __device__ const T* keys(const AttentionArgs& a) const {
    return static_cast<const T*>(a.k) + b * a.k_stride_b + kv * a.k_stride_h;
  }
  template <typename T>
  __device__ const T* values(const AttentionArgs& a) const {
    return static_cast<const T*>(a.v) + b * a.v_stride_b + kv * a.v_stride_h;
  }
  // Of the rows of o [B T H, D].
  __device__ int64_t place(const AttentionArgs& a, int row) const {
    return (b * a.T + row / G) * a.H + kv * G + row % G;
  }
};

// Blocks that share the keys of one piece of the rows: where there are few pieces, as many as run at once on the whole
// device, each with two tiles of keys or more.
inline int64_t attention_parts(const AttentionArgs& a, int64_t pieces, int64_t at_once, int64_t tile) {
  return std::max<int64_t>(1, std::min({at_once / pieces, a.S / (2 * tile), kMostParts}));
}

// A way to compute attention.
struct AttentionKernel {
  bool (*supports)(const AttentionArgs&);
  int64_t (*scratch_bytes)(const AttentionArgs&);
  Status (*run)(const AttentionArgs&, Stream);
};
// What both kernels on tensor cores ask.
bool supports_tensor_cores(const AttentionArgs&);

extern const AttentionKernel attention_wgmma, attention_mma, attention_paged, attention_plain;

}  // namespace nybble::cuda
