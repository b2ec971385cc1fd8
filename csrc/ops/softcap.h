// x = cap tanh(x / cap), in place: bends x smoothly into (-cap, cap).
#pragma once
#include "ops/problem.h"

namespace nybble {

struct SoftcapArgs {
  void* x;  // [R, D], dtype, rows stride elements apart
  DType dtype;
  int64_t R, D, stride;
  float cap;  // more than 0, finite
};

namespace cpu {
Status softcap(const SoftcapArgs&);
}
namespace cuda {
Status softcap(const SoftcapArgs&, Stream);
}

}  // namespace nybble
