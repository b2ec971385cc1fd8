// y = act(gate) * up, act = silu, gelu or gelu by tanh, number by number, in float.
//
//   gate [ ....V.... ]
//   up   [ ....V.... ]  ->  y [ ....V.... ]   thread t of a block: V numbers from V t on (common/pieces.cuh)
#include "cuda/common/pieces.cuh"
#include "ops/gate.h"

namespace nybble::cuda {
namespace {

// Phi(a) from its tail Phi(-|a|) = t p(t) exp(-a^2 / 2), t = 1 / (1 + 0.35 |a|), so that the left tail keeps its
// relative accuracy. p: a minimax fit on t > 0.17 (beyond it the tail is 0 in float), off by 3e-8.
__device__ inline float normal(float a) {
  constexpr float p[] = {-2.914613449e-02f, 1.439726828e-01f, -2.557162680e-01f, 1.591764316e-01f, -2.311137546e-02f,
                         1.055086448e-01f,  1.198327086e-01f, 1.398618911e-01f,  1.396214031e-01f};
  const float t = __fdividef(1.0f, 1.0f + 0.35f * fabsf(a));
  float sum = p[0];
#pragma unroll
  for (int i = 1; i < 9; ++i) sum = sum * t + p[i];
  const float tail = t * sum * __expf(-0.5f * a * a);
  return a < 0.0f ? tail : 1.0f - tail;
}

template <Act kAct>
__device__ inline float act(float a) {
  if constexpr (kAct == Act::silu) return __fdividef(a, 1.0f + expf(-a));
  if constexpr (kAct == Act::gelu) return a * normal(a);
  // a (1 + tanh u) / 2 = a / (1 + exp(-2u)), which does not cancel for negative a.
  const float u = 0.7978845608028654f * (a + 0.044715f * a * a * a);
  return __fdividef(a, 1.0f + expf(-2.0f * u));
}

template <typename T, int V, Act kAct>
__global__ void __launch_bounds__(kPieceThreads) gate_kernel(GateArgs a,         // as ops/gate.h says
                                                             unsigned pieces) {  // of a row
  const auto [r, i] = place_in<V>(pieces);
  if (i >= a.D) return;
  wait_for_previous();
  let_next_begin();
  float gate[V], up[V];
  load(static_cast<const T*>(a.gate) + r * a.gate_stride + i, gate);
  load(static_cast<const T*>(a.up) + r * a.up_stride + i, up);
#pragma unroll
  for (int j = 0; j < V; ++j) gate[j] = act<kAct>(gate[j]) * up[j];
  store(static_cast<T*>(a.y) + r * a.D + i, gate);
}

template <Act kAct>
Status gate(const GateArgs& a, Stream stream) {
  return with_type(a.dtype, [&](auto number) {
    using T = typename decltype(number)::type;
    constexpr int V = kWide<T>;
    const bool whole = a.D % V == 0 && wide(a.gate, a.dtype, a.gate_stride, V) && wide(a.up, a.dtype, a.up_stride, V) &&
                       wide(a.y, a.dtype, a.D, V);
    return with_width<T>(
        whole, [&](auto width) { return launch_pieces<width>(gate_kernel<T, width, kAct>, a.R, a.D, stream, a); });
  });
}

}  // namespace

Status gate(const GateArgs& given, Stream stream) {
  if (given.R == 0 || given.D == 0) return {};
  GateArgs a = given;
  if (a.R == 1 || (a.gate_stride == a.D && a.up_stride == a.D)) {  // one long row
    a.D *= a.R;
    a.gate_stride = a.up_stride = a.D;
    a.R = 1;
  }
  if (a.act == Act::silu) return gate<Act::silu>(a, stream);
  if (a.act == Act::gelu) return gate<Act::gelu>(a, stream);
  return gate<Act::gelu_tanh>(a, stream);
}

}  // namespace nybble::cuda
