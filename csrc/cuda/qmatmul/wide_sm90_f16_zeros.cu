// float16 activations, zeros in the matrix: one of four units, for each has many kernels to compile.
#ifdef NYBBLE_SM90A
#include "cuda/qmatmul/wide_sm90_launch.cuh"

namespace nybble::cuda {

Status wide_sm90_f16_zeros(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return wide::wide_sm90<__half, true>(a, m, stream);
}

}  // namespace nybble::cuda
#endif
