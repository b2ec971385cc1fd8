// R rows of D numbers cut into pieces of kPiece, a block each, for what is done number by number:
//
//   row 0 [ block 0 | block 1 | block 2 ]   row 1 [ block 3 | block 4 | block 5 ] ...   thread t: V numbers from V t on
#pragma once
#include <type_traits>

#include "cuda/common/launch.cuh"
#include "cuda/common/wide.cuh"

namespace nybble::cuda {

constexpr int kPieceThreads = 256;

struct Place {
  int64_t row, column;  // of this thread's first number
};

// column >= D: nothing to do.
template <int V>
__device__ inline Place place_in(unsigned pieces) {
  const unsigned row = blockIdx.x / pieces;
  return {row, (static_cast<int64_t>(blockIdx.x - row * pieces) * kPieceThreads + threadIdx.x) * V};
}

// kernel(arguments..., pieces of a row), launched early.
template <int V, typename... Parameters, typename... Arguments>
Status launch_pieces(void (*kernel)(Parameters...), int64_t R, int64_t D, Stream stream, Arguments... arguments) {
  const int64_t pieces = (D + kPieceThreads * V - 1) / (kPieceThreads * V);
  if (pieces > 0x7fffffff / R) return {"more numbers than a grid has blocks for"};
  return launch(kernel, dim3(static_cast<unsigned>(R * pieces)), dim3(kPieceThreads), 0, stream, gpu().sm >= 90,
                arguments..., static_cast<unsigned>(pieces));
}

// Calls body(width) with the numbers a thread takes at a time, as a constant: kWide<T>, or 1 where not `wide`.
template <typename T, typename Body>
Status with_width(bool wide, Body body) {
  return wide ? body(std::integral_constant<int, kWide<T>>{}) : body(std::integral_constant<int, 1>{});
}

}  // namespace nybble::cuda
