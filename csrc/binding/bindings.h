// What the binding files offer to library.cpp: one function an op and device, with the schema's arguments.
#pragma once
#include <tuple>

#include "binding/check.h"

namespace nybble::binding {

Tensor qmatmul_cpu(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias, int64_t N,
                   int64_t act_bits);
Tensor matmul_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias);
Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps, const std::optional<ScalarType>& dtype);
Tensor layer_norm_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                      const std::optional<ScalarType>& dtype);
void rms_norm_in_place_cpu(const Tensor& x, const Tensor& weight, double eps);
void layer_norm_in_place_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps);
void softcap_cpu(const Tensor& x, double cap);
void rope_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox);
Tensor attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& lengths, double scale,
                     bool causal, int64_t window);
Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up);
Tensor gelu_mul_cpu(const Tensor& gate, const Tensor& up, bool tanh);
Tensor embedding_cpu(const Tensor& ids, const Tensor& weight, ScalarType dtype);
Tensor sample_cpu(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                  const Tensor& min_p, const Tensor& random);
void repetition_penalty_cpu(const Tensor& logits, const Tensor& tokens, const Tensor& penalty);
std::tuple<Tensor, Tensor> moe_route_cpu(const Tensor& logits, int64_t k, bool renormalize);

#ifdef NYBBLE_CUDA
Tensor rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps, const std::optional<ScalarType>& dtype);
void rms_norm_in_place_cuda(const Tensor& x, const Tensor& weight, double eps);
#endif

}  // namespace nybble::binding
