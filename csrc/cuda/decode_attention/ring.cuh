// The slots of a ring that hold tokens, cut into parts that blocks take; what both kernels of decode_attention share.
#pragma once
#include "cuda/attention/parts.cuh"
#include "ops/decode_attention.h"

namespace nybble::cuda::ring {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 128;  // slots a block takes at once

// Query heads [head0, head0 + heads) of sequence b, all on one KV head, and slots [from, to).
struct Work {
  int64_t b, kv, head0;  // kv: of all KV heads of all sequences
  int heads, part;
  int64_t from, to, newest;

  // Blocks: parts of one group of heads side by side, then groups of one KV head.
  __device__ Work(const DecodeAttentionArgs& a, int parts, int heads_of_block) {
    const int64_t G = a.H / a.Hk, groups = (G + heads_of_block - 1) / heads_of_block;
    part = static_cast<int>(blockIdx.x) % parts;
    const int64_t piece = blockIdx.x / parts, group = piece % groups;
    kv = piece / groups;
    b = kv / a.Hk;
    head0 = kv % a.Hk * G + group * heads_of_block;
    heads = static_cast<int>(min(static_cast<int64_t>(heads_of_block), G - group * heads_of_block));

    const int64_t length = a.lengths[b], filled = length < 0 ? 0 : min(length, a.L);
    const int64_t tiles = (filled + kTile - 1) / kTile, step = (tiles + parts - 1) / parts * kTile;
    newest = filled > 0 ? (length - 1) % a.L : 0;
    from = min(filled, part * step), to = min(filled, from + step);
  }
  // Tokens since the one in this slot.
  __device__ int64_t age(const DecodeAttentionArgs& a, int64_t slot) const {
    return newest >= slot ? newest - slot : newest - slot + a.L;
  }
  __device__ int64_t row(const DecodeAttentionArgs& a, int head) const { return b * a.H + head0 + head; }
};

struct Kernel {
  bool (*supports)(const DecodeAttentionArgs&);
  int (*heads_of_block)(const DecodeAttentionArgs&);
  int64_t (*blocks_at_once)(const DecodeAttentionArgs&);  // of a multiprocessor
  Status (*start)(const DecodeAttentionArgs&, const Parts&, unsigned blocks, Stream);
};
extern const Kernel mma, plain;

}  // namespace nybble::cuda::ring
