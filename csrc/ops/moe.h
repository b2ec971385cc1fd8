// The k largest of softmax(logits) in each row and their experts: the largest first, the lower index first among
// equals. Weights are divided by their sum if `renormalize`. A row whose softmax is not defined (a nan, +inf, or -inf
// only) gives nan weights and the experts 0 to k - 1.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct MoeRouteArgs {
  const void* logits;  // [R, E], dtype, rows logits_stride elements apart
  float* weights;      // [R, k], out
  int64_t* experts;    // [R, k], out
  DType dtype;
  bool renormalize;
  int64_t R, E, k, logits_stride;
};

namespace cpu {
Status moe_route(const MoeRouteArgs&);
}
namespace cuda {
Status moe_route(const MoeRouteArgs&, Stream);
}

}  // namespace nybble
