// x for kernels that copy it 16 bytes at a time, in the order of packed rows.
#pragma once
#include "cuda/qmatmul/matrix.h"

namespace nybble::cuda {

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whether every row of x begins where such a piece does.
inline bool in_pieces(const QMatmulArgs& a) { return aligned(a.x) && a.x_stride % 8 == 0; }

// out [M, KB * 32] = gather(x, perm), 2-byte numbers; rows are multiples of 64 bytes.
Status gather_x(const QMatmulArgs&, void* out, Stream);
inline int64_t gathered_bytes(const QMatmulArgs& a) { return a.M * a.KB * kPackRows * 2; }

// The same product of what gather_x() has put at the start of its scratch memory.
inline QMatmulArgs after_gather(QMatmulArgs a) {
  a.x = a.scratch;
  a.x_stride = a.K = a.KB * kPackRows;
  a.perm = nullptr;
  a.scratch = static_cast<uint8_t*>(a.scratch) + gathered_bytes(a);
  return a;
}

}  // namespace nybble::cuda
