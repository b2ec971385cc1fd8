// sample and repetition_penalty_: check, fill the arguments, call.
#include "ops/sample.h"

#include "binding/bindings.h"

namespace nybble::binding {
namespace {

// One number a row, dense: float32 or int64 `values` [B] that satisfy `good`.
template <typename T, typename Good>
Tensor per_row(Check& check, const Tensor& values, const char* name, const char* expected, Good good) {
  check.type(values, name, std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Long);
  check.shape(values, name, {"B"});
  Tensor dense = torch::stable::contiguous(values);
  check.each<T>(dense, name, expected, good);
  return dense;
}

}  // namespace

Tensor sample_cpu(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                  const Tensor& min_p, const Tensor& random) {
  Check check("sample");
  SampleArgs args{};
  check.type(logits, "logits", ScalarType::Float);
  check.shape(logits, "logits", {"B", "V"});
  // Each comparison is false for NaN.
  const Tensor t = per_row<float>(check, temperature, "temperature", "0 or more", [](float v) { return v >= 0; });
  const Tensor k = per_row<int64_t>(check, top_k, "top_k", "0 (off) or more", [](int64_t v) { return v >= 0; });
  const Tensor p = per_row<float>(check, top_p, "top_p", "0 to 1", [](float v) { return v >= 0 && v <= 1; });
  const Tensor m = per_row<float>(check, min_p, "min_p", "0 to 1", [](float v) { return v >= 0 && v <= 1; });
  const Tensor r = per_row<float>(check, random, "random", "0 to 1, without 1", [](float v) { return v >= 0 && v < 1; });
  args.B = check["B"];
  args.V = check["V"];
  Tensor token = torch::stable::new_empty(logits, {args.B}, ScalarType::Long);
  if (args.B == 0) return token;
  check.that(args.V > 0, "logits has no columns, expected V >= 1");
  const Rows rows(logits);
  args.logits = static_cast<const float*>(rows.data());
  args.stride = rows.stride;
  args.temperature = static_cast<const float*>(t.data_ptr());
  args.top_k = static_cast<const int64_t*>(k.data_ptr());
  args.top_p = static_cast<const float*>(p.data_ptr());
  args.min_p = static_cast<const float*>(m.data_ptr());
  args.random = static_cast<const float*>(r.data_ptr());
  args.token = static_cast<int64_t*>(token.data_ptr());
  const Scratch scratch(logits, cpu::sample_scratch_bytes(args));
  args.scratch = scratch.data();
  check.done(cpu::sample(args));
  return token;
}

void repetition_penalty_cpu(const Tensor& logits, const Tensor& tokens, const Tensor& penalty) {
  Check check("repetition_penalty_");
  RepetitionPenaltyArgs args{};
  check.type(logits, "logits", ScalarType::Float);
  check.shape(logits, "logits", {"B", "V"});
  check.unit_stride(logits, "logits");
  check.distinct(logits, "logits");
  check.type(tokens, "tokens", ScalarType::Long);
  check.shape(tokens, "tokens", {"B", "L"});
  const Tensor dense = torch::stable::contiguous(tokens);
  const int64_t V = check["V"];
  check.each<int64_t>(dense, "tokens", "-1 (padding) or 0 to V - 1", [V](int64_t t) { return t >= -1 && t < V; });
  const Tensor factor = per_row<float>(check, penalty, "penalty", "more than 0", [](float v) { return v > 0; });
  args.logits = static_cast<float*>(logits.data_ptr());
  args.stride = logits.stride(0);
  args.tokens = static_cast<const int64_t*>(dense.data_ptr());
  args.penalty = static_cast<const float*>(factor.data_ptr());
  args.B = check["B"];
  args.V = V;
  args.L = check["L"];
  if (args.B * args.V * args.L == 0) return;
  check.done(cpu::repetition_penalty(args));
}

}  // namespace nybble::binding
