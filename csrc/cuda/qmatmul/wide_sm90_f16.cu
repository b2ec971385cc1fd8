// float16 activations, no zeros in the matrix, which is in runs: one of six units, for each has many kernels to
// compile.
#ifdef NYBBLE_SM90A
#include "cuda/qmatmul/wide_sm90_launch.cuh"

namespace nybble::cuda {

Status wide_sm90_f16(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return wide::wide_in_runs<__half, false>(a, m, stream);
}

// The tiles' sizes are those of every type.
int64_t wide_sm90_scratch_bytes(const QMatmulArgs& a, const Matrix& m) {
  const auto bytes = [&](auto tile, auto) {
    using Tile = decltype(tile);
    return wide::scratch_bytes<Tile>(wide::plan_of<Tile>(a, m));
  };
  return in_runs(m, a.M) ? wide::with_run_tile<__half>(a.M, bytes) : wide::with_mixed_tile<__half>(a.M, bytes);
}

}  // namespace nybble::cuda
#endif
