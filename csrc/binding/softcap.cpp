// softcap_: check, fill the arguments, call.
#include "ops/softcap.h"

#include <cmath>

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernel` is the soft cap on either device.
template <typename Kernel>
void softcap(Check check, const Tensor& x, double cap, Kernel kernel) {
  SoftcapArgs args{};
  args.dtype = check.floats(x, "x");
  check.shape(x, "x", {"...", "D"});
  check.distinct(x, "x");
  args.cap = static_cast<float>(cap);
  check.that(args.cap > 0 && std::isfinite(args.cap), "cap is ", cap, ", expected a finite number above 0");
  const WritableRows rows(x);
  if (rows.R * rows.D == 0) return;
  args.x = rows.data();
  args.R = rows.R;
  args.D = rows.D;
  args.stride = rows.stride;
  check.done(kernel(args));
  rows.write_back();
}

}  // namespace

void softcap_cpu(const Tensor& x, double cap) { softcap(Check("softcap_"), x, cap, cpu::softcap); }

#ifdef NYBBLE_CUDA
void softcap_cuda(const Tensor& x, double cap) {
  const CudaScope scope(x);
  softcap(Check("softcap_", true), x, cap,
          [&](const SoftcapArgs& args) { return cuda::softcap(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
