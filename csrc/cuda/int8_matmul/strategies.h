// The ways to multiply, one a file. supports_x: whether x can, and should where a later one could too.
#pragma once
#include "ops/int8_matmul.h"

namespace nybble::cuda::int8 {

bool supports_few_rows(const Int8MatmulArgs&);
Status few_rows(const Int8MatmulArgs&, Stream);

bool supports_wgmma_some(const Int8MatmulArgs&);
Status wgmma_some(const Int8MatmulArgs&, Stream);

bool supports_wgmma_many(const Int8MatmulArgs&);
Status wgmma_many(const Int8MatmulArgs&, Stream);

// Any shape on any device.
Status tiles(const Int8MatmulArgs&, Stream);
int64_t tiles_scratch(const Int8MatmulArgs&);  // numbers of `scratch` that it wants

}  // namespace nybble::cuda::int8
