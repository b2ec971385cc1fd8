// sample, sample_chain and repetition_penalty_: check, fill the arguments, call.
#include "ops/sample.h"

#include <cfloat>
#include <cmath>

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// One number a row, dense: float32 or int64 `values` [B] that satisfy `good`.
template <typename T, typename Good>
Tensor per_row(Check& check, const Tensor& values, const char* name, const char* expected, Good good) {
  check.type(values, name, std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Long);
  check.shape(values, name, {"B"});
  Tensor given = dense(values);
  check.each<T>(given, name, expected, good);
  return given;
}

std::optional<Tensor> dense_mask(Check& check, const std::optional<Tensor>& mask, const char* name, Letters letters) {
  if (!mask.has_value()) return std::nullopt;
  check.type(*mask, name, ScalarType::Bool);
  check.shape(*mask, name, letters);
  return dense(*mask);
}

// The number of values that the steps take.
int64_t columns(const Check& check, const std::vector<int64_t>& steps) {
  int64_t C = 0;
  for (const int64_t step : steps) {
    check.that(step >= 0 && step < int64_t(SampleStep::count), "steps has ", step, ", which is no step");
    C += sample_step_values(static_cast<SampleStep>(step));
  }
  return C;
}

void check_values(const Check& check, const std::vector<int64_t>& steps, const float* values, int64_t B, int64_t C) {
  int64_t c = 0;
  for (const int64_t number : steps) {
    const auto step = static_cast<SampleStep>(number);
    const int64_t count = sample_step_values(step);
    for (int64_t i = 0; i < count; ++i, ++c) {
      const bool chance = step == SampleStep::xtc && i == 0;
      const float most = chance ? 1.0f : step == SampleStep::dynamic_temper ? FLT_MAX : INFINITY;
      for (int64_t b = 0; b < B; ++b) {
        const float v = values[b * C + c];
        check.that(v >= 0 && v <= most, "values[", b, ", ", c, "] is ", v, ", expected 0 to ", most);
      }
    }
  }
}

// `kernel` is the op on either device, here and below.
template <typename Kernel>
Tensor sample(Check check, const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
              const Tensor& min_p, const Tensor& random, Kernel kernel) {
  SampleArgs args{};
  check.type(logits, "logits", ScalarType::Float);
  check.shape(logits, "logits", {"B", "V"});
  // Each comparison is false for NaN.
  const Tensor t = per_row<float>(check, temperature, "temperature", "0 or more", [](float v) { return v >= 0; });
  const Tensor k = per_row<int64_t>(check, top_k, "top_k", "0 (off) or more", [](int64_t v) { return v >= 0; });
  const Tensor p = per_row<float>(check, top_p, "top_p", "0 to 1", [](float v) { return v >= 0 && v <= 1; });
  const Tensor m = per_row<float>(check, min_p, "min_p", "0 to 1", [](float v) { return v >= 0 && v <= 1; });
  const Tensor r =
      per_row<float>(check, random, "random", "0 to 1, without 1", [](float v) { return v >= 0 && v < 1; });
  args.B = check["B"];
  args.V = check["V"];
  Tensor token = new_beside(logits, {args.B}, ScalarType::Long);
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
  check.done(kernel(args));
  return token;
}

using Choice = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename Kernel>
Choice sample_chain(Check check, const Tensor& logits, const Tensor& temperature, const std::optional<Tensor>& allowed,
                    const std::optional<Tensor>& removable, const std::vector<int64_t>& steps, const Tensor& values,
                    const Tensor& random, int64_t top, Kernel kernel) {
  SampleChainArgs args{};
  check.type(logits, "logits", ScalarType::Float);
  check.shape(logits, "logits", {"B", "V"});
  const Tensor t = per_row<float>(check, temperature, "temperature", "0 or more", [](float v) { return v >= 0; });
  const Tensor r =
      per_row<float>(check, random, "random", "0 to 1, without 1", [](float v) { return v >= 0 && v < 1; });
  const std::optional<Tensor> mask = dense_mask(check, allowed, "allowed", {"B", "V"});
  const std::optional<Tensor> may_go = dense_mask(check, removable, "removable", {"V"});
  check.let("C", columns(check, steps), "steps");
  check.type(values, "values", ScalarType::Float);
  check.shape(values, "values", {"B", "C"});
  const Tensor v = dense(values);
  args.B = check["B"];
  args.V = check["V"];
  args.C = check["C"];
  if (v.is_cpu()) check_values(check, steps, static_cast<const float*>(v.data_ptr()), args.B, args.C);
  check.that(top >= 0 && top <= args.V, "top is ", top, ", expected 0 to V = ", args.V);
  args.S = static_cast<int64_t>(steps.size());
  args.top = top;
  Tensor token = new_beside(logits, {args.B}, ScalarType::Long);
  Tensor probability = new_beside(logits, {args.B}, ScalarType::Float);
  Tensor top_tokens = new_beside(logits, {args.B, top}, ScalarType::Long);
  Tensor top_probabilities = new_beside(logits, {args.B, top}, ScalarType::Float);
  if (args.B > 0) {
    check.that(args.V > 0, "logits has no columns, expected V >= 1");
    const Rows rows(logits);
    args.logits = static_cast<const float*>(rows.data());
    args.stride = rows.stride;
    args.temperature = static_cast<const float*>(t.data_ptr());
    args.allowed = static_cast<const uint8_t*>(pointer(mask));
    args.removable = static_cast<const uint8_t*>(pointer(may_go));
    args.steps = steps.data();
    args.values = static_cast<const float*>(v.data_ptr());
    args.random = static_cast<const float*>(r.data_ptr());
    args.token = static_cast<int64_t*>(token.data_ptr());
    args.probability = static_cast<float*>(probability.data_ptr());
    args.top_tokens = static_cast<int64_t*>(top_tokens.data_ptr());
    args.top_probabilities = static_cast<float*>(top_probabilities.data_ptr());
    check.done(kernel(args));
  }
  return {token, probability, top_tokens, top_probabilities};
}

template <typename Kernel>
void repetition_penalty(Check check, const Tensor& logits, const Tensor& tokens, const Tensor& penalty,
                        const std::optional<Tensor>& frequency, const std::optional<Tensor>& presence, int64_t sustain,
                        int64_t decay, Kernel kernel) {
  RepetitionPenaltyArgs args{};
  check.type(logits, "logits", ScalarType::Float);
  check.shape(logits, "logits", {"B", "V"});
  check.unit_stride(logits, "logits");
  check.distinct(logits, "logits");
  check.type(tokens, "tokens", ScalarType::Long);
  check.shape(tokens, "tokens", {"B", "L"});
  const Tensor given = dense(tokens);
  const int64_t V = check["V"];
  check.each<int64_t>(given, "tokens", "-1 (padding) or 0 to V - 1", [V](int64_t t) { return t >= -1 && t < V; });
  const Tensor factor = per_row<float>(check, penalty, "penalty", "more than 0", [](float v) { return v > 0; });
  const auto number = [](float v) { return v == v; };
  std::optional<Tensor> often, once;
  if (frequency.has_value()) often = per_row<float>(check, *frequency, "frequency", "a number", number);
  if (presence.has_value()) once = per_row<float>(check, *presence, "presence", "a number", number);
  check.that(sustain >= -1, "sustain is ", sustain, ", expected -1 (all tokens) or more");
  check.that(decay >= 0, "decay is ", decay, ", expected 0 or more");
  args.logits = static_cast<float*>(logits.data_ptr());
  args.stride = logits.stride(0);
  args.tokens = static_cast<const int64_t*>(given.data_ptr());
  args.penalty = static_cast<const float*>(factor.data_ptr());
  args.frequency = static_cast<const float*>(pointer(often));
  args.presence = static_cast<const float*>(pointer(once));
  args.sustain = sustain;
  args.decay = decay;
  args.B = check["B"];
  args.V = V;
  args.L = check["L"];
  if (args.B * args.V * args.L == 0) return;
  check.done(kernel(args));
}

}  // namespace

Tensor sample_cpu(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                  const Tensor& min_p, const Tensor& random) {
  return sample(Check("sample"), logits, temperature, top_k, top_p, min_p, random, cpu::sample);
}

Choice sample_chain_cpu(const Tensor& logits, const Tensor& temperature, const std::optional<Tensor>& allowed,
                        const std::optional<Tensor>& removable, const std::vector<int64_t>& steps, const Tensor& values,
                        const Tensor& random, int64_t top) {
  return sample_chain(Check("sample_chain"), logits, temperature, allowed, removable, steps, values, random, top,
                      cpu::sample_chain);
}

void repetition_penalty_cpu(const Tensor& logits, const Tensor& tokens, const Tensor& penalty,
                            const std::optional<Tensor>& frequency, const std::optional<Tensor>& presence,
                            int64_t sustain, int64_t decay) {
  repetition_penalty(Check("repetition_penalty_"), logits, tokens, penalty, frequency, presence, sustain, decay,
                     cpu::repetition_penalty);
}

#ifdef NYBBLE_CUDA
Tensor sample_cuda(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                   const Tensor& min_p, const Tensor& random) {
  const CudaScope scope(logits);
  return sample(Check("sample", true), logits, temperature, top_k, top_p, min_p, random,
                [&](const SampleArgs& args) { return cuda::sample(args, scope.stream()); });
}

Choice sample_chain_cuda(const Tensor& logits, const Tensor& temperature, const std::optional<Tensor>& allowed,
                         const std::optional<Tensor>& removable, const std::vector<int64_t>& steps,
                         const Tensor& values, const Tensor& random, int64_t top) {
  const CudaScope scope(logits);
  return sample_chain(Check("sample_chain", true), logits, temperature, allowed, removable, steps, values, random, top,
                      [&](SampleChainArgs args) {
                        const Scratch memory(logits, cuda::sample_chain_scratch(args));
                        args.scratch = memory.data();
                        return cuda::sample_chain(args, scope.stream());
                      });
}

void repetition_penalty_cuda(const Tensor& logits, const Tensor& tokens, const Tensor& penalty,
                             const std::optional<Tensor>& frequency, const std::optional<Tensor>& presence,
                             int64_t sustain, int64_t decay) {
  const CudaScope scope(logits);
  repetition_penalty(Check("repetition_penalty_", true), logits, tokens, penalty, frequency, presence, sustain, decay,
                     [&](RepetitionPenaltyArgs args) {
                       const Scratch memory(logits, cuda::repetition_penalty_scratch(args));
                       args.scratch = memory.data();
                       return cuda::repetition_penalty(args, scope.stream());
                     });
}
#endif

}  // namespace nybble::binding
