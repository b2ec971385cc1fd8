// What the binding files offer to library.cpp: one function an op and device, with the schema's arguments.
#pragma once
#include <tuple>

#include "binding/check.h"

namespace nybble::binding {

Tensor qmatmul_cpu(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias,
                   int64_t N, int64_t act_bits, const std::optional<Tensor>& norm, double eps, int64_t gate,
                   const std::optional<Tensor>& add, bool invariant);
Tensor dequantize_cpu(const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                      const std::optional<Tensor>& perm, const Tensor& blocks, int64_t K, int64_t N, ScalarType dtype);
Tensor matmul_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias);
Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps, const std::optional<ScalarType>& dtype);
Tensor layer_norm_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                      const std::optional<ScalarType>& dtype);
void rms_norm_in_place_cpu(const Tensor& x, const Tensor& weight, double eps);
void layer_norm_in_place_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps);
void softcap_cpu(const Tensor& x, double cap);
void kv_quantize_cpu(const Tensor& codes, const Tensor& scales, const Tensor& x, const Tensor& runs, int64_t bits);
void kv_dequantize_cpu(const Tensor& x, const Tensor& codes, const Tensor& scales, const Tensor& runs, int64_t bits);
void fp8_encode_cpu(const Tensor& codes, const Tensor& x);
void fp8_decode_cpu(const Tensor& x, const Tensor& codes);
void rope_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox);
Tensor attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& lengths,
                     double scale, bool causal, int64_t window);
Tensor cached_attention_cpu(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox,
                            const Tensor& keys, const Tensor& values, const Tensor& lengths, double scale,
                            int64_t window);
Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up);
Tensor gelu_mul_cpu(const Tensor& gate, const Tensor& up, bool tanh);
Tensor gate_halves_cpu(const char* op, const Tensor& x,
                       int64_t act);  // act(left half of x) * right half; no op of its own
Tensor embedding_cpu(const Tensor& ids, const Tensor& weight, ScalarType dtype);
Tensor sample_cpu(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                  const Tensor& min_p, const Tensor& random);
std::tuple<Tensor, Tensor> quantize_columns_cpu(const Tensor& x, const Tensor& scales, int64_t zero, int64_t max_code);
Tensor quantize_error_cpu(const Tensor& x, const Tensor& scales, const Tensor& factors, int64_t zero, int64_t max_code,
                          double norm);
void gptq_group_cpu(const Tensor& weight, const Tensor& codes, const Tensor& error, const Tensor& cholesky,
                    const Tensor& scales, int64_t zero, int64_t max_code);
Tensor anneal_knapsack_cpu(const Tensor& cost, const Tensor& loss, const Tensor& first, int64_t budget,
                           const Tensor& temperature, int64_t steps, int64_t seed);
std::tuple<Tensor, Tensor> quantize_int8_cpu(const Tensor& x);
std::tuple<Tensor, Tensor> layer_norm_int8_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                               double eps);
Tensor int8_matmul_cpu(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                       const std::optional<Tensor>& bias, ScalarType dtype);
Tensor decode_attention_cpu(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                            const std::optional<Tensor>& slopes, double scale);
Tensor paged_attention_cpu(const Tensor& q, const Tensor& keys, const Tensor& values,
                           const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                           const Tensor& block_table, const Tensor& lengths, const std::optional<Tensor>& slopes,
                           double scale, int64_t window, double softcap, bool invariant);
std::tuple<Tensor, Tensor, Tensor, Tensor> sample_chain_cpu(const Tensor& logits, const Tensor& temperature,
                                                            const std::optional<Tensor>& allowed,
                                                            const std::optional<Tensor>& removable,
                                                            const std::vector<int64_t>& steps, const Tensor& values,
                                                            const Tensor& random, int64_t top);
void repetition_penalty_cpu(const Tensor& logits, const Tensor& tokens, const Tensor& penalty,
                            const std::optional<Tensor>& frequency, const std::optional<Tensor>& presence,
                            int64_t sustain, int64_t decay);
std::tuple<Tensor, Tensor> moe_route_cpu(const Tensor& logits, int64_t k, bool renormalize);

#ifdef NYBBLE_CUDA
Tensor qmatmul_cuda(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                    const std::optional<Tensor>& perm, const Tensor& blocks, const std::optional<Tensor>& bias,
                    int64_t N, int64_t act_bits, const std::optional<Tensor>& norm, double eps, int64_t gate,
                    const std::optional<Tensor>& add, bool invariant);
Tensor dequantize_cuda(const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                       const std::optional<Tensor>& perm, const Tensor& blocks, int64_t K, int64_t N, ScalarType dtype);
Tensor rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps, const std::optional<ScalarType>& dtype);
void rms_norm_in_place_cuda(const Tensor& x, const Tensor& weight, double eps);
Tensor sample_cuda(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                   const Tensor& min_p, const Tensor& random);
std::tuple<Tensor, Tensor, Tensor, Tensor> sample_chain_cuda(const Tensor& logits, const Tensor& temperature,
                                                             const std::optional<Tensor>& allowed,
                                                             const std::optional<Tensor>& removable,
                                                             const std::vector<int64_t>& steps, const Tensor& values,
                                                             const Tensor& random, int64_t top);
void repetition_penalty_cuda(const Tensor& logits, const Tensor& tokens, const Tensor& penalty,
                             const std::optional<Tensor>& frequency, const std::optional<Tensor>& presence,
                             int64_t sustain, int64_t decay);
Tensor layer_norm_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                       const std::optional<ScalarType>& dtype);
void layer_norm_in_place_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps);
void softcap_cuda(const Tensor& x, double cap);
Tensor silu_mul_cuda(const Tensor& gate, const Tensor& up);
Tensor gelu_mul_cuda(const Tensor& gate, const Tensor& up, bool tanh);
Tensor gate_halves_cuda(const char* op, const Tensor& x, int64_t act);
Tensor embedding_cuda(const Tensor& ids, const Tensor& weight, ScalarType dtype);
std::tuple<Tensor, Tensor> moe_route_cuda(const Tensor& logits, int64_t k, bool renormalize);
Tensor matmul_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias);
std::tuple<Tensor, Tensor> quantize_int8_cuda(const Tensor& x);
std::tuple<Tensor, Tensor> layer_norm_int8_cuda(const Tensor& x, const Tensor& weight,
                                                const std::optional<Tensor>& bias, double eps);
void kv_quantize_cuda(const Tensor& codes, const Tensor& scales, const Tensor& x, const Tensor& runs, int64_t bits);
void kv_dequantize_cuda(const Tensor& x, const Tensor& codes, const Tensor& scales, const Tensor& runs, int64_t bits);
void fp8_encode_cuda(const Tensor& codes, const Tensor& x);
void fp8_decode_cuda(const Tensor& x, const Tensor& codes);
std::tuple<Tensor, Tensor> quantize_columns_cuda(const Tensor& x, const Tensor& scales, int64_t zero, int64_t max_code);
Tensor quantize_error_cuda(const Tensor& x, const Tensor& scales, const Tensor& factors, int64_t zero, int64_t max_code,
                           double norm);
void gptq_group_cuda(const Tensor& weight, const Tensor& codes, const Tensor& error, const Tensor& cholesky,
                     const Tensor& scales, int64_t zero, int64_t max_code);
Tensor anneal_knapsack_cuda(const Tensor& cost, const Tensor& loss, const Tensor& first, int64_t budget,
                            const Tensor& temperature, int64_t steps, int64_t seed);
Tensor int8_matmul_cuda(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                        const std::optional<Tensor>& bias, ScalarType dtype);
Tensor paged_attention_cuda(const Tensor& q, const Tensor& keys, const Tensor& values,
                            const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                            const Tensor& block_table, const Tensor& lengths, const std::optional<Tensor>& slopes,
                            double scale, int64_t window, double softcap, bool invariant);
void rope_cuda(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox);
Tensor attention_cuda(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& lengths,
                      double scale, bool causal, int64_t window);
Tensor cached_attention_cuda(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& positions,
                             bool neox, const Tensor& keys, const Tensor& values, const Tensor& lengths, double scale,
                             int64_t window);
Tensor decode_attention_cuda(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                             const std::optional<Tensor>& slopes, double scale);
#endif

}  // namespace nybble::binding
