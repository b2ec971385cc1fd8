// y[r] = weight[ids[r]], converted to y's type; NaN where the id is outside the table.
//
//   weight  row ids[r] [ ....V.... ] -> y row r [ ....V.... ]   thread t of a block: V numbers from V t on
#include "cuda/common/pieces.cuh"
#include "ops/embedding.h"

namespace nybble::cuda {
namespace {

template <int V>
__global__ void __launch_bounds__(kPieceThreads) embedding_kernel(EmbeddingArgs a,    // as ops/embedding.h says
                                                                  unsigned pieces) {  // of a row
  const auto [r, i] = place_in<V>(pieces);
  if (i >= a.D) return;
  wait_for_previous();
  let_next_begin();
  const int64_t id = a.ids[r];
  float v[V];
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = NAN;
  if (id >= 0 && id < a.V) load(a.weight, a.w_dtype, id * a.D + i, v);
  store(a.y, a.y_dtype, r * a.D + i, v);
}

}  // namespace

Status embedding(const EmbeddingArgs& a, Stream stream) {
  if (a.R == 0 || a.D == 0) return {};
  constexpr int V = 8;
  const bool whole = a.D % V == 0 && wide(a.weight, a.w_dtype, a.D, V) && wide(a.y, a.y_dtype, a.D, V);
  return whole ? launch_pieces<V>(embedding_kernel<V>, a.R, a.D, stream, a)
               : launch_pieces<1>(embedding_kernel<1>, a.R, a.D, stream, a);
}

}  // namespace nybble::cuda
