// The product for many rows, y = gather(x, perm) @ W + bias + add, with W rounded to x's type and float32 sums: x is
// brought into packed order if it must be, then the kernel of this GPU runs.
#include "cuda/common/launch.cuh"
#include "cuda/qmatmul/gather.h"
#include "cuda/qmatmul/qmatmul.h"
#include "cuda/qmatmul/wide.h"

namespace nybble::cuda {
namespace {

// The kernels take no notice of perm.
bool must_gather(const QMatmulArgs& a) { return a.perm != nullptr || !in_pieces(a); }

int64_t gather_scratch(const QMatmulArgs& a) { return must_gather(a) ? gathered_bytes(a) : 0; }

#ifdef NYBBLE_SM90A
bool is_hopper() { return gpu().is_sm90; }
#endif

// Whether all segments fit in `m`.
bool whole_matrix(const QMatmulArgs& a, Matrix* m) {
  *m = describe(a);
  int32_t offset = 0;
  return cut_segments(a.blocks, m->KB, 0, &offset, m) == a.KB;
}

}  // namespace

bool supports_wide(const QMatmulArgs& a) {
  Matrix m;
  return a.x_dtype != DType::f32 &&                                            // the tensor cores take 16 bits
         gpu().sm >= 80 &&                                                     //
         a.KB > 0 && a.KB < 1 << 16 && whole_matrix(a, &m) &&                  // one launch has it all
         aligned(a.weight) && aligned(a.scales) && aligned(a.zeros) &&         // copied 16 bytes at a time
         a.M < INT32_MAX / 2 && (a.M / 16 + 1) * (a.N / 128 + 1) < INT32_MAX;  // rows and tiles are counted in 32 bits
}

bool prefers_wide(const QMatmulArgs& a) {
  if (a.invariant || !supports_wide(a)) return false;  // its sums are not those of few rows
#ifdef NYBBLE_SM90A
  if (is_hopper()) return a.M > 8;  // H200, 8192 x 28672, 16 rows: 39 us, by the other way 84
#endif
  return a.M > 16;  // the same by the sm_80 kernel: 101 us
}

int64_t qmatmul_wide_scratch_bytes(const QMatmulArgs& a) {
  Matrix m;
  whole_matrix(a, &m);
#ifdef NYBBLE_SM90A
  if (is_hopper()) return gather_scratch(a) + wide_sm90_scratch_bytes(a, m);
#endif
  return gather_scratch(a) + wide_sm80_scratch_bytes(a, m);
}

Status qmatmul_wide(const QMatmulArgs& given, Stream stream) {
  QMatmulArgs a = given;
  if (must_gather(given)) {
    if (const Status done = gather_x(given, given.scratch, stream); !done.ok()) return done;
    a = after_gather(given);
  }
  Matrix m;
  whole_matrix(a, &m);
#ifdef NYBBLE_SM90A
  if (is_hopper()) {
    const bool half = a.x_dtype == DType::f16, zeros = a.zeros != nullptr;
    if (!in_runs(m, a.M)) return (half ? wide_sm90_f16_mixed : wide_sm90_bf16_mixed)(a, m, stream);
    if (half) return (zeros ? wide_sm90_f16_zeros : wide_sm90_f16)(a, m, stream);
    return (zeros ? wide_sm90_bf16_zeros : wide_sm90_bf16)(a, m, stream);
  }
#endif
  return wide_sm80(a, m, stream);
}

}  // namespace nybble::cuda
