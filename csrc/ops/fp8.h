// Half numbers cut to float8 e5m2: the upper byte of each, not rounded; and back.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct Fp8Args {
  const void* from;  // [R, D], float16 (encode) or bytes (decode), rows from_stride elements apart
  void* to;          // [R, D], the other type, rows to_stride elements apart
  int64_t R, D, from_stride, to_stride;
};

namespace cpu {
Status fp8_encode(const Fp8Args&);
Status fp8_decode(const Fp8Args&);
}  // namespace cpu
namespace cuda {
Status fp8_encode(const Fp8Args&, Stream);
Status fp8_decode(const Fp8Args&, Stream);
}  // namespace cuda

}  // namespace nybble
