// What every op's contract is written in: plain types with no framework behind them.
#pragma once
#include <cstdint>

namespace nybble {

enum class DType : int32_t { f32, f16, bf16 };

// What a kernel answers. A text is a static string: kernels do not allocate.
struct Status {
  const char* error = nullptr;  // nullptr: it worked
  bool ok() const { return error == nullptr; }
};

// The caller's CUDA stream (cudaStream_t), opaque so that CPU code needs no CUDA header.
using Stream = void*;

}  // namespace nybble
