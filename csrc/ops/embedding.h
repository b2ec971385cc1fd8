// y[i] = weight[ids[i]], converted to y_dtype.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct EmbeddingArgs {
  const int64_t* ids;  // [R], each in [0, V); an id outside is the error "embedding: an id is outside the table" on the
                       // CPU and a row of NaN on a GPU
  const void* weight;  // [V, D], w_dtype, contiguous
  void* y;             // [R, D], y_dtype, contiguous
  DType w_dtype, y_dtype;
  int64_t R, V, D;
};

namespace cpu {
Status embedding(const EmbeddingArgs&);
}
namespace cuda {
Status embedding(const EmbeddingArgs&, Stream);
}

}  // namespace nybble
