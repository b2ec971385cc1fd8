// What the binding files offer to library.cpp: one function an op and device, with the schema's arguments.
#pragma once
#include <tuple>

#include "binding/check.h"

namespace nybble::binding {

Tensor qmatmul_cpu(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias, int64_t N,
                   int64_t act_bits);
Tensor matmul_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias);
Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps);
Tensor layer_norm_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps);
void rope_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox);
Tensor attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& lengths, double scale,
                     bool causal, int64_t window);
Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up);
Tensor gelu_mul_cpu(const Tensor& gate, const Tensor& up, bool tanh);
Tensor embedding_cpu(const Tensor& ids, const Tensor& weight, ScalarType dtype);
Tensor sample_cpu(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                  const Tensor& min_p, const Tensor& random);
std::tuple<Tensor, Tensor, Tensor, Tensor> sample_chain_cpu(const Tensor& logits, const Tensor& temperature,
                                                            const std::optional<Tensor>& allowed,
                                                            const std::optional<Tensor>& removable,
                                                            const std::vector<int64_t>& steps, const Tensor& values,
                                                            const Tensor& random, int64_t top);
void repetition_penalty_cpu(const Tensor& logits, const Tensor& tokens, const Tensor& penalty,
                            const std::optional<Tensor>& frequency, const std::optional<Tensor>& presence,
                            int64_t sustain, int64_t decay);

#ifdef NYBBLE_CUDA
Tensor rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps);
#endif

}  // namespace nybble::binding
