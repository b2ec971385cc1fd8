"""The op list: every schema once. Importing this module defines the ops in ``torch.ops.nybble``; no compiler is needed."""

from __future__ import annotations

import torch

SCHEMAS: dict[str, str] = {
    "qmatmul": "(Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? perm, Tensor blocks, Tensor? bias, "
    "int N, int act_bits) -> Tensor",
    "matmul": "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "rms_norm": "(Tensor x, Tensor weight, float eps, ScalarType? dtype=None) -> Tensor",
    "layer_norm": "(Tensor x, Tensor weight, Tensor? bias, float eps, ScalarType? dtype=None) -> Tensor",
    "rms_norm_": "(Tensor(a!) x, Tensor weight, float eps) -> ()",
    "layer_norm_": "(Tensor(a!) x, Tensor weight, Tensor? bias, float eps) -> ()",
    "softcap_": "(Tensor(a!) x, float cap) -> ()",
    "rope_": "(Tensor(a!) x, Tensor cos, Tensor sin, Tensor positions, bool neox) -> ()",
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor? lengths, float scale, bool causal, int window) -> Tensor",
    "silu_mul": "(Tensor gate, Tensor up) -> Tensor",
    "gelu_mul": "(Tensor gate, Tensor up, bool tanh) -> Tensor",
    "moe_route": "(Tensor logits, int k, bool renormalize) -> (Tensor, Tensor)",
    "embedding": "(Tensor ids, Tensor weight, ScalarType dtype) -> Tensor",
    "sample": "(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor random) -> Tensor",
    "repetition_penalty_": "(Tensor(a!) logits, Tensor tokens, Tensor penalty) -> ()",
}

LIBRARY = torch.library.Library("nybble", "DEF")
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema)
