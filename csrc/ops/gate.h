// y = act(gate) * up, act = silu: a / (1 + exp(-a)); gelu: exact (erf) or tanh form.
#pragma once
#include "ops/problem.h"

namespace nybble {

enum class Act : int32_t { silu, gelu, gelu_tanh };

struct GateArgs {
  const void *gate, *up;  // [R, D], dtype, rows gate_stride / up_stride elements apart
  void* y;                // [R, D], dtype, contiguous
  DType dtype;
  Act act;
  int64_t R, D, gate_stride, up_stride;
};

namespace cpu {
Status gate(const GateArgs&);
}
namespace cuda {
Status gate(const GateArgs&, Stream);
}

}  // namespace nybble
