// float16 activations, any matrix: one of six units, for each has many kernels to compile.
#ifdef NYBBLE_SM90A
#include "cuda/qmatmul/wide_sm90_launch.cuh"

namespace nybble::cuda {

Status wide_sm90_f16_mixed(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return wide::wide_mixed<__half>(a, m, stream);
}

}  // namespace nybble::cuda
#endif
