// The strategies behind cuda::matmul. All but matmul_mma_rows compute any problem; they differ in what they are fast
// at.
#pragma once
#include "ops/matmul.h"

namespace nybble::cuda {

Status matmul_few_rows(const MatmulArgs&, Stream);
bool mma_rows_fit(const MatmulArgs&);  // whether matmul_mma_rows computes the problem: 16-byte pieces, types it knows
Status matmul_mma_rows(const MatmulArgs&, Stream);
Status matmul_tiles(const MatmulArgs&, Stream);

}  // namespace nybble::cuda
