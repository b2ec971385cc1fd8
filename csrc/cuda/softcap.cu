// x = cap tanh(x / cap), in place, number by number, in float.
//
//   x [ ....V.... ] -> x   thread t of a block: V numbers from V t on (common/pieces.cuh)
#include "cuda/common/pieces.cuh"
#include "ops/softcap.h"

namespace nybble::cuda {
namespace {

template <typename T, int V>
__global__ void __launch_bounds__(kPieceThreads) softcap_kernel(SoftcapArgs a,      // as ops/softcap.h says
                                                                unsigned pieces) {  // of a row
  const auto [r, i] = place_in<V>(pieces);
  if (i >= a.D) return;
  wait_for_previous();
  let_next_begin();
  T* x = static_cast<T*>(a.x) + r * a.stride + i;
  const float inverse = 1.0f / a.cap;
  float v[V];
  load(x, v);
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = a.cap * tanhf(v[j] * inverse);
  store(x, v);
}

}  // namespace

Status softcap(const SoftcapArgs& given, Stream stream) {
  if (given.R == 0 || given.D == 0) return {};
  SoftcapArgs a = given;
  if (a.R == 1 || a.stride == a.D) {  // one long row
    a.D *= a.R;
    a.stride = a.D;
    a.R = 1;
  }
  return with_type(a.dtype, [&](auto number) {
    using T = typename decltype(number)::type;
    const bool whole = a.D % kWide<T> == 0 && wide(a.x, a.dtype, a.stride, kWide<T>);
    return with_width<T>(
        whole, [&](auto width) { return launch_pieces<width>(softcap_kernel<T, width>, a.R, a.D, stream, a); });
  });
}

}  // namespace nybble::cuda
