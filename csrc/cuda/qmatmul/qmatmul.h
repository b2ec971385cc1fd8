// The strategies of qmatmul and what each can do; choose.cpp asks them in order.
#pragma once
#include "cuda/qmatmul/matrix.h"
#include "ops/qmatmul.h"

namespace nybble::cuda {

// Float products on the ordinary units: every dtype, every GPU, any number of rows. The meaning of the faster ones.
Status qmatmul_simt(const QMatmulArgs&, Stream);
int64_t qmatmul_simt_scratch_bytes(const QMatmulArgs&);

// A few rows on tensor cores, as fast as weights are read: half and bfloat16, sm_80 and later.
bool supports_few(const QMatmulArgs&);
bool few_prepares(const QMatmulArgs&);  // norm or gate as well
Status qmatmul_few(const QMatmulArgs&, Stream);
int64_t qmatmul_few_scratch_bytes(const QMatmulArgs&);

// Tensor cores, for many rows: W rounded to x's type, sums in float32. Half and bfloat16, sm_80 and later.
bool supports_wide(const QMatmulArgs&);
bool prefers_wide(const QMatmulArgs&);  // to the way of few rows
Status qmatmul_wide(const QMatmulArgs&, Stream);
int64_t qmatmul_wide_scratch_bytes(const QMatmulArgs&);

}  // namespace nybble::cuda
