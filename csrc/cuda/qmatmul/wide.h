// The parts of qmatmul_wide(): x in packed order, and a kernel for each kind of GPU. The kernels want x with rows at
// multiples of 16 bytes and take no notice of `perm`; `m` is the matrix with all its segments.
#pragma once
#include "cuda/qmatmul/matrix.h"

namespace nybble::cuda {

// out [M, KB * 32] = gather(x, perm), 2-byte numbers.
Status gather_x(const QMatmulArgs&, void* out, Stream);

Status wide_sm80(const QMatmulArgs&, const Matrix& m, Stream);
int64_t wide_sm80_scratch_bytes(const QMatmulArgs&, const Matrix& m);

Status wide_sm90_f16(const QMatmulArgs&, const Matrix& m, Stream);
Status wide_sm90_f16_zeros(const QMatmulArgs&, const Matrix& m, Stream);
Status wide_sm90_bf16(const QMatmulArgs&, const Matrix& m, Stream);
Status wide_sm90_bf16_zeros(const QMatmulArgs&, const Matrix& m, Stream);
int64_t wide_sm90_scratch_bytes(const QMatmulArgs&, const Matrix& m);

}  // namespace nybble::cuda
