// rope_: check, fill the arguments, call.
#include "binding/rope.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernel` is that of either device.
template <typename Kernel>
void turn(Check check, const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox,
          Kernel kernel) {
  RopeArgs args{};
  args.dtype = check.floats(x, "x");
  check.shape(x, "x", {"B", "T", "H", "D"});
  check.unit_stride(x, "x");
  check.distinct(x, "x");
  const Tensor place = check_rope(check, cos, sin, positions, check["D"], "x has", args);
  args.x = x.data_ptr();
  args.B = check["B"];
  args.T = check["T"];
  args.H = check["H"];
  args.stride_b = x.stride(0);
  args.stride_t = x.stride(1);
  args.stride_h = x.stride(2);
  args.neox = neox;
  if (x.numel() == 0 || args.R == 0) return;
  check.done(kernel(args));
}

}  // namespace

void rope_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox) {
  turn(Check("rope_"), x, cos, sin, positions, neox, cpu::rope);
}

#ifdef NYBBLE_CUDA
void rope_cuda(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox) {
  const CudaScope scope(x);
  turn(Check("rope_", true), x, cos, sin, positions, neox,
       [&](const RopeArgs& args) { return cuda::rope(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
