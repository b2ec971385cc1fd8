// The part of rope's arguments that every op with rotary positions has.
#pragma once
#include "binding/check.h"
#include "ops/rope.h"

namespace nybble::binding {

// Checks the tables and positions [B, T] against D channels of `what` ("x has", "keys have") and puts them into args.
// Returns the positions as they are read: keep them until the kernel is done.
inline Tensor check_rope(Check& check, const Tensor& cos, const Tensor& sin, const Tensor& positions, int64_t D,
                         const char* what, RopeArgs& args) {
  check.type(cos, "cos", ScalarType::Float);
  check.shape(cos, "cos", {"P", "R/2"});
  check.contiguous(cos, "cos");
  check.type(sin, "sin", ScalarType::Float);
  check.shape(sin, "sin", {"P", "R/2"});
  check.contiguous(sin, "sin");
  check.type(positions, "positions", ScalarType::Long);
  check.shape(positions, "positions", {"B", "T"});
  Tensor place = dense(positions);
  const int64_t P = check["P"], R = 2 * check["R/2"];
  check.that(R <= D, "cos turns R = ", R, " channels, but ", what, " only D = ", D);
  check.each<int64_t>(place, "positions", "0 to P - 1, the rows of cos", [P](int64_t p) { return p >= 0 && p < P; });
  args.cos = static_cast<const float*>(cos.data_ptr());
  args.sin = static_cast<const float*>(sin.data_ptr());
  args.positions = static_cast<const int64_t*>(place.data_ptr());
  args.D = D;
  args.R = R;
  args.P = P;
  return place;
}

}  // namespace nybble::binding
