// y = gather(x, perm) @ W + bias + add, W[k, n] = (code[k, n] - zero[g, n]) * scale[g, n], over a packed matrix.
// The byte layout of `weight` is described in docs/formats/packed.md; nybble/ops/packed.py writes it.
#pragma once
#include "ops/problem.h"

namespace nybble {

constexpr int kPackColumns = 16;  // columns of one column block
constexpr int kPackRows = 32;     // packed rows of one k block

struct QMatmulArgs {
  const void* x;  // [M, K], x_dtype, rows x_stride elements apart, unit stride within a row
  DType x_dtype;
  int64_t x_stride;
  const uint8_t* weight;   // column blocks one after another, each sum(64 * bits[kb]) bytes
  const uint16_t* scales;  // [NB, G, 16] fp16
  const float* zeros;      // [NB, G, 16] f32, or nullptr: 2^(bits-1)
  const int32_t* perm;  // [KB * 32] column of x for each packed row, -1 for padding; nullptr: identity, x is 0 beyond K
  const int32_t* blocks;  // [KB, 2] in host memory: bits (2, 3, 4, 5, 6, 8) and group of each k block
  const void* bias;       // [N], x_dtype, or nullptr
  const void* add;        // [M, N], x_dtype, rows add_stride elements apart, or nullptr
  int64_t add_stride;
  // Done to x first, where cuda::qmatmul_prepares() says so; the bits are those of the ops of their own.
  const void* norm = nullptr;  // [K], norm_dtype: rms_norm's weight
  DType norm_dtype = DType::f32;
  float eps = 0;
  int gate = -1;    // an Act (ops/gate.h): x is [M, 2 K], a gate and what is gated
  void* y;          // [M, N], x_dtype, contiguous, fully written
  int64_t M, N, K;  // N is the true width; NB = ceil(N / 16)
  int64_t KB, G;    // k blocks, groups
  int act_bits;  // 32: float activations; 16 or 8: integers with one scale per 32, where the CPU has the instructions.
                 // GPUs take activations as they are.
  bool invariant;  // a row's sums are the same whatever the other rows and their number
  void* scratch;   // qmatmul_scratch_bytes() bytes, 64-byte aligned
};

namespace cpu {
int64_t qmatmul_scratch_bytes(const QMatmulArgs&);
Status qmatmul(const QMatmulArgs&);
}  // namespace cpu
namespace cuda {
// Whether norm or gate may be given for this product.
bool qmatmul_prepares(const QMatmulArgs&);
int64_t qmatmul_scratch_bytes(const QMatmulArgs&);
Status qmatmul(const QMatmulArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
