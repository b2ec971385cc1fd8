// keys[b, h, n_b - T + t] = k[b, t, h], values likewise from v, with n_b = lengths[b]: the tokens held after this step.
#pragma once
#include "ops/problem.h"
#include "ops/rope.h"

namespace nybble {

struct KvAppendArgs {
  void *keys, *values;  // [B, Hk, S, D], dtype, unit stride along D
  const void *k, *v;    // [B, T, Hk, D], dtype, unit stride along D
  DType dtype;
  const int64_t* lengths;  // [B], T <= lengths[b] <= S
  int64_t B, T, S, Hk, D;
  struct Strides {
    int64_t b, h, s;  // of keys or values; of k or v: s is that of T
  } keys_stride, values_stride, k_stride, v_stride;
};

namespace cpu {
Status kv_append(const KvAppendArgs&);
}
namespace cuda {
// rope and then kv_append, in one kernel: the last Hk heads of qk.x are k, and cache.k is not read. Lengths are clamped
// to [0, S]; a token before slot 0 is not stored.
Status rope_append(const RopeArgs& qk, const KvAppendArgs& cache, Stream);
}  // namespace cuda

}  // namespace nybble
