// float16 activations, no zeros in the matrix: one of four units, for each has many kernels to compile.
#ifdef NYBBLE_SM90A
#include "cuda/qmatmul/wide_sm90_launch.cuh"

namespace nybble::cuda {

Status wide_sm90_f16(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return wide::wide_sm90<__half, false>(a, m, stream);
}

int64_t wide_sm90_scratch_bytes(const QMatmulArgs& a, const Matrix& m) {
  const wide::Choice c = wide::sm90_choice(a, m);
  return wide::piece_bytes(wide::sm90_plan(a, m), static_cast<int64_t>(c.rows) * c.columns * c.cluster);
}

}  // namespace nybble::cuda
#endif
