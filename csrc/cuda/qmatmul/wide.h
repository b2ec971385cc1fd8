// The parts of qmatmul_wide(): a kernel for each kind of GPU. They want x with rows at multiples of 16 bytes and take
// no notice of `perm`; `m` is the matrix with all its segments.
#pragma once
#include "cuda/qmatmul/matrix.h"

namespace nybble::cuda {

Status wide_sm80(const QMatmulArgs&, const Matrix& m, Stream);
int64_t wide_sm80_scratch_bytes(const QMatmulArgs&, const Matrix& m);

constexpr int kRunBlocks = 4;  // k blocks of a run

// Hopper's kernels are of two kinds. What most matrices are: 4 bits, each run of 4 k blocks in one group; for up to 16
// rows in pairs of runs, with one group for both or one for each.
inline bool in_runs(const Matrix& m, int64_t rows) {
  constexpr int kPair = 2 * kRunBlocks;
  for (int i = 0; i < m.segments; ++i) {
    const Segment& s = m.segment[i];
    if (s.bits != 4 || s.count % kRunBlocks != 0 || s.per % kRunBlocks != 0) return false;
    if (rows <= 16 && (s.count % kPair != 0 || (s.per % kPair != 0 && s.per != kRunBlocks))) return false;
  }
  return true;
}
Status wide_sm90_f16(const QMatmulArgs&, const Matrix& m, Stream);
Status wide_sm90_f16_zeros(const QMatmulArgs&, const Matrix& m, Stream);
Status wide_sm90_bf16(const QMatmulArgs&, const Matrix& m, Stream);
Status wide_sm90_bf16_zeros(const QMatmulArgs&, const Matrix& m, Stream);
// And all others, with zeros or without.
Status wide_sm90_f16_mixed(const QMatmulArgs&, const Matrix& m, Stream);
Status wide_sm90_bf16_mixed(const QMatmulArgs&, const Matrix& m, Stream);
int64_t wide_sm90_scratch_bytes(const QMatmulArgs&, const Matrix& m);

}  // namespace nybble::cuda
