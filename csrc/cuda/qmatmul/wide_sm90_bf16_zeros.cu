// bfloat16 activations, zeros in the matrix, which is in runs: one of six units, for each has many kernels to compile.
#ifdef NYBBLE_SM90A
#include "cuda/qmatmul/wide_sm90_launch.cuh"

namespace nybble::cuda {

Status wide_sm90_bf16_zeros(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return wide::wide_in_runs<__nv_bfloat16, true>(a, m, stream);
}

}  // namespace nybble::cuda
#endif
