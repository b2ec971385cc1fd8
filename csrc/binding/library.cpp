// Which function serves which op on which device. The schemas are in nybble/ops/_schema.py.
#include <torch/csrc/stable/library.h>

#include "binding/bindings.h"
#include "cpu/threads.h"

namespace nybble::binding {
namespace {

// Torch's own pool, so that one set of threads serves both.
void torch_run(int64_t n, int64_t grain, cpu::Body body, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, body, context));
}

int64_t torch_threads() {
  uint32_t count = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return count;
}

}  // namespace
}  // namespace nybble::binding

STABLE_TORCH_LIBRARY_IMPL(nybble, CPU, m) {
  using namespace nybble::binding;
  nybble::cpu::set_pool({torch_run, torch_threads});
  m.impl("qmatmul", TORCH_BOX(&qmatmul_cpu));
  m.impl("matmul", TORCH_BOX(&matmul_cpu));
  m.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
  m.impl("layer_norm", TORCH_BOX(&layer_norm_cpu));
  m.impl("rms_norm_", TORCH_BOX(&rms_norm_in_place_cpu));
  m.impl("layer_norm_", TORCH_BOX(&layer_norm_in_place_cpu));
  m.impl("softcap_", TORCH_BOX(&softcap_cpu));
  m.impl("rope_", TORCH_BOX(&rope_cpu));
  m.impl("attention", TORCH_BOX(&attention_cpu));
  m.impl("silu_mul", TORCH_BOX(&silu_mul_cpu));
  m.impl("gelu_mul", TORCH_BOX(&gelu_mul_cpu));
  m.impl("moe_route", TORCH_BOX(&moe_route_cpu));
  m.impl("embedding", TORCH_BOX(&embedding_cpu));
  m.impl("sample", TORCH_BOX(&sample_cpu));
  m.impl("repetition_penalty_", TORCH_BOX(&repetition_penalty_cpu));
}

#ifdef NYBBLE_CUDA
STABLE_TORCH_LIBRARY_IMPL(nybble, CUDA, m) {
  m.impl("rms_norm", TORCH_BOX(&nybble::binding::rms_norm_cuda));
  m.impl("rms_norm_", TORCH_BOX(&nybble::binding::rms_norm_in_place_cuda));
}
#endif
