"""The op list: every schema once. Importing this module defines the ops in ``torch.ops.nybble``; no compiler is needed."""

from __future__ import annotations

import torch

SCHEMAS: dict[str, str] = {
    "qmatmul": "(Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? perm, Tensor blocks, Tensor? bias, "
    "int N, int act_bits, Tensor? norm=None, float eps=0.0, int gate=-1, Tensor? add=None, bool invariant=False) -> Tensor",
    "dequantize": "(Tensor weight, Tensor scales, Tensor? zeros, Tensor? perm, Tensor blocks, int K, int N, "
    "ScalarType dtype) -> Tensor",
    "matmul": "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "rms_norm": "(Tensor x, Tensor weight, float eps, ScalarType? dtype=None) -> Tensor",
    "layer_norm": "(Tensor x, Tensor weight, Tensor? bias, float eps, ScalarType? dtype=None) -> Tensor",
    "rms_norm_": "(Tensor(a!) x, Tensor weight, float eps) -> ()",
    "layer_norm_": "(Tensor(a!) x, Tensor weight, Tensor? bias, float eps) -> ()",
    "softcap_": "(Tensor(a!) x, float cap) -> ()",
    "kv_quantize_": "(Tensor(a!) codes, Tensor(b!) scales, Tensor x, Tensor runs, int bits) -> ()",
    "kv_dequantize_": "(Tensor(a!) x, Tensor codes, Tensor scales, Tensor runs, int bits) -> ()",
    "fp8_encode_": "(Tensor(a!) codes, Tensor x) -> ()",
    "fp8_decode_": "(Tensor(a!) x, Tensor codes) -> ()",
    "rope_": "(Tensor(a!) x, Tensor cos, Tensor sin, Tensor positions, bool neox) -> ()",
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor? lengths, float scale, bool causal, int window) -> Tensor",
    "cached_attention_": "(Tensor(a!) qkv, Tensor cos, Tensor sin, Tensor positions, bool neox, Tensor(b!) keys, "
    "Tensor(c!) values, Tensor lengths, float scale, int window) -> Tensor",
    "silu_mul": "(Tensor gate, Tensor up) -> Tensor",
    "gelu_mul": "(Tensor gate, Tensor up, bool tanh) -> Tensor",
    "moe_route": "(Tensor logits, int k, bool renormalize) -> (Tensor, Tensor)",
    "embedding": "(Tensor ids, Tensor weight, ScalarType dtype) -> Tensor",
    "sample": "(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor random) -> Tensor",
    "quantize_columns": "(Tensor x, Tensor scales, int zero, int max_code) -> (Tensor, Tensor)",
    "quantize_error": "(Tensor x, Tensor scales, Tensor factors, int zero, int max_code, float norm) -> Tensor",
    "gptq_group_": "(Tensor(a!) weight, Tensor(b!) codes, Tensor(c!) error, Tensor cholesky, Tensor scales, "
    "int zero, int max_code) -> ()",
    "anneal_knapsack": "(Tensor cost, Tensor loss, Tensor first, int budget, Tensor temperature, int steps, "
    "int seed) -> Tensor",
    "quantize_int8": "(Tensor x) -> (Tensor, Tensor)",
    "layer_norm_int8": "(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor)",
    "int8_matmul": "(Tensor x, Tensor x_scale, Tensor weight, Tensor w_scale, Tensor? bias, ScalarType dtype) -> Tensor",
    "decode_attention": "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? slopes, float scale) -> Tensor",
    "paged_attention": "(Tensor q, Tensor keys, Tensor values, Tensor? key_scales, Tensor? value_scales, "
    "Tensor block_table, Tensor lengths, Tensor? slopes, float scale, int window, float softcap, "
    "bool invariant=False) -> Tensor",
    "sample_chain": "(Tensor logits, Tensor temperature, Tensor? allowed, Tensor? removable, int[] steps, Tensor values, "
    "Tensor random, int top) -> (Tensor, Tensor, Tensor, Tensor)",
    "repetition_penalty_": "(Tensor(a!) logits, Tensor tokens, Tensor penalty, Tensor? frequency=None, "
    "Tensor? presence=None, int sustain=-1, int decay=0) -> ()",
}

LIBRARY = torch.library.Library("nybble", "DEF")
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema)

# The shape rule of an op: ``@register_fake("nybble::NAME")``. Torch before 2.4 has it under its first name.
register_fake = getattr(
    torch.library,
    "register_fake" if hasattr(torch.library, "register_fake") else "impl_abstract",
)
