// dequantize: W[perm[k], n] = (code[k, n] - zero[g, n]) * scale[g, n], a packed matrix as plain numbers
// (docs/formats/packed.md).
#pragma once
#include "ops/problem.h"

namespace nybble {

struct DequantizeArgs {
  const uint8_t* weight;   // column blocks one after another, each sum(64 * bits[kb]) bytes
  const uint16_t* scales;  // [NB, G, 16] fp16
  const float* zeros;      // [NB, G, 16] f32, or nullptr: 2^(bits-1)
  const int32_t* perm;     // [KB * 32] row of W for each packed row, each once, -1: padding; nullptr: identity
  const int32_t* blocks;   // [KB, 2] in host memory: bits (2, 3, 4, 5, 6, 8) and group of each k block
  void* y;                 // [K, N], dtype, contiguous, fully written
  DType dtype;
  int64_t K, N;   // N is the true width; NB = ceil(N / 16)
  int64_t KB, G;  // k blocks, groups
};

namespace cpu {
Status dequantize(const DequantizeArgs&);
}
namespace cuda {
Status dequantize(const DequantizeArgs&, Stream);
}

}  // namespace nybble
