// Which function serves which op on which device, and the library taken into use by a torch with the stable functions.
// The schemas are in nybble/ops/_schema.py.
#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "binding/bindings.h"
#include "binding/export.h"
#include "binding/library.h"
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

void* find(void* library, const char* name) {
#ifdef _WIN32
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
#else
  return dlsym(library, name);
#endif
}

using torch::stable::detail::StableLibrary;

void cpu_ops(StableLibrary& m) {
  m.impl("qmatmul", TORCH_BOX(&qmatmul_cpu));
  m.impl("dequantize", TORCH_BOX(&dequantize_cpu));
  m.impl("matmul", TORCH_BOX(&matmul_cpu));
  m.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
  m.impl("layer_norm", TORCH_BOX(&layer_norm_cpu));
  m.impl("rms_norm_", TORCH_BOX(&rms_norm_in_place_cpu));
  m.impl("layer_norm_", TORCH_BOX(&layer_norm_in_place_cpu));
  m.impl("softcap_", TORCH_BOX(&softcap_cpu));
  m.impl("kv_quantize_", TORCH_BOX(&kv_quantize_cpu));
  m.impl("kv_dequantize_", TORCH_BOX(&kv_dequantize_cpu));
  m.impl("fp8_encode_", TORCH_BOX(&fp8_encode_cpu));
  m.impl("fp8_decode_", TORCH_BOX(&fp8_decode_cpu));
  m.impl("rope_", TORCH_BOX(&rope_cpu));
  m.impl("attention", TORCH_BOX(&attention_cpu));
  m.impl("cached_attention_", TORCH_BOX(&cached_attention_cpu));
  m.impl("silu_mul", TORCH_BOX(&silu_mul_cpu));
  m.impl("gelu_mul", TORCH_BOX(&gelu_mul_cpu));
  m.impl("moe_route", TORCH_BOX(&moe_route_cpu));
  m.impl("embedding", TORCH_BOX(&embedding_cpu));
  m.impl("sample", TORCH_BOX(&sample_cpu));
  m.impl("sample_chain", TORCH_BOX(&sample_chain_cpu));
  m.impl("repetition_penalty_", TORCH_BOX(&repetition_penalty_cpu));
  m.impl("quantize_columns", TORCH_BOX(&quantize_columns_cpu));
  m.impl("quantize_error", TORCH_BOX(&quantize_error_cpu));
  m.impl("gptq_group_", TORCH_BOX(&gptq_group_cpu));
  m.impl("anneal_knapsack", TORCH_BOX(&anneal_knapsack_cpu));
  m.impl("quantize_int8", TORCH_BOX(&quantize_int8_cpu));
  m.impl("layer_norm_int8", TORCH_BOX(&layer_norm_int8_cpu));
  m.impl("int8_matmul", TORCH_BOX(&int8_matmul_cpu));
  m.impl("decode_attention", TORCH_BOX(&decode_attention_cpu));
  m.impl("paged_attention", TORCH_BOX(&paged_attention_cpu));
}

#ifdef NYBBLE_CUDA
void cuda_ops(StableLibrary& m) {
  m.impl("qmatmul", TORCH_BOX(&nybble::binding::qmatmul_cuda));
  m.impl("dequantize", TORCH_BOX(&nybble::binding::dequantize_cuda));
  m.impl("rms_norm", TORCH_BOX(&nybble::binding::rms_norm_cuda));
  m.impl("rms_norm_", TORCH_BOX(&nybble::binding::rms_norm_in_place_cuda));
  m.impl("sample", TORCH_BOX(&nybble::binding::sample_cuda));
  m.impl("sample_chain", TORCH_BOX(&nybble::binding::sample_chain_cuda));
  m.impl("repetition_penalty_", TORCH_BOX(&nybble::binding::repetition_penalty_cuda));
  m.impl("layer_norm", TORCH_BOX(&nybble::binding::layer_norm_cuda));
  m.impl("layer_norm_", TORCH_BOX(&nybble::binding::layer_norm_in_place_cuda));
  m.impl("softcap_", TORCH_BOX(&nybble::binding::softcap_cuda));
  m.impl("silu_mul", TORCH_BOX(&nybble::binding::silu_mul_cuda));
  m.impl("gelu_mul", TORCH_BOX(&nybble::binding::gelu_mul_cuda));
  m.impl("embedding", TORCH_BOX(&nybble::binding::embedding_cuda));
  m.impl("moe_route", TORCH_BOX(&nybble::binding::moe_route_cuda));
  m.impl("matmul", TORCH_BOX(&nybble::binding::matmul_cuda));
  m.impl("quantize_int8", TORCH_BOX(&nybble::binding::quantize_int8_cuda));
  m.impl("layer_norm_int8", TORCH_BOX(&nybble::binding::layer_norm_int8_cuda));
  m.impl("kv_quantize_", TORCH_BOX(&nybble::binding::kv_quantize_cuda));
  m.impl("kv_dequantize_", TORCH_BOX(&nybble::binding::kv_dequantize_cuda));
  m.impl("fp8_encode_", TORCH_BOX(&nybble::binding::fp8_encode_cuda));
  m.impl("fp8_decode_", TORCH_BOX(&nybble::binding::fp8_decode_cuda));
  m.impl("quantize_columns", TORCH_BOX(&nybble::binding::quantize_columns_cuda));
  m.impl("quantize_error", TORCH_BOX(&nybble::binding::quantize_error_cuda));
  m.impl("gptq_group_", TORCH_BOX(&nybble::binding::gptq_group_cuda));
  m.impl("anneal_knapsack", TORCH_BOX(&nybble::binding::anneal_knapsack_cuda));
  m.impl("int8_matmul", TORCH_BOX(&nybble::binding::int8_matmul_cuda));
  m.impl("paged_attention", TORCH_BOX(&nybble::binding::paged_attention_cuda));
  m.impl("rope_", TORCH_BOX(&nybble::binding::rope_cuda));
  m.impl("attention", TORCH_BOX(&nybble::binding::attention_cuda));
  m.impl("cached_attention_", TORCH_BOX(&nybble::binding::cached_attention_cuda));
  m.impl("decode_attention", TORCH_BOX(&nybble::binding::decode_attention_cuda));
}
#endif

}  // namespace

void register_cpu_ops() {
  static StableLibrary cpu(StableLibrary::Kind::IMPL, "nybble", "CPU", __FILE__, __LINE__);
  cpu_ops(cpu);
}

void register_cuda_ops() {
#ifdef NYBBLE_CUDA
  static StableLibrary cuda(StableLibrary::Kind::IMPL, "nybble", "CUDA", __FILE__, __LINE__);
  cuda_ops(cuda);
#endif
}

}  // namespace nybble::binding

// Takes the open libraries of a torch from 2.10 on; the second is nullptr for one without CUDA, whose tensors the CUDA
// ops must never get: a torch for ROCm calls its device CUDA too. Returns nullptr, or the name of the function that
// this torch does not have.
NYBBLE_EXPORT const char* nybble_use_torch(void* torch_cpu, void* torch_cuda) {
  using namespace nybble::binding;
#define X(name, ...)                                                         \
  torch::name = reinterpret_cast<decltype(&::name)>(find(torch_cpu, #name)); \
  if (torch::name == nullptr) return #name;
  NYBBLE_TORCH_ALL(X)
#undef X
  if (torch_cuda != nullptr)
    current_stream = reinterpret_cast<CurrentStream>(find(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  nybble::cpu::set_pool({torch_run, torch_threads});
  register_cpu_ops();
  if (torch_cuda != nullptr) register_cuda_ops();
  return nullptr;
}
