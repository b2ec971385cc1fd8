// softcap_: check, fill the arguments, call.
#include "ops/softcap.h"

#include <cmath>

#include "binding/bindings.h"

namespace nybble::binding {

void softcap_cpu(const Tensor& x, double cap) {
  Check check("softcap_");
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
  check.done(cpu::softcap(args));
  rows.write_back();
}

}  // namespace nybble::binding
