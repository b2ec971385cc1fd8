"""The meaning of every op in plain PyTorch: slow, on any device, in float32 inside.

Each function has its op's name and its schema's arguments. It also serves every device that has no kernel of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nybble.ops.reference.anneal import anneal_knapsack
from nybble.ops.reference.attention import attention
from nybble.ops.reference.cached_attention import cached_attention_
from nybble.ops.reference.decode_attention import decode_attention
from nybble.ops.reference.dequantize import dequantize
from nybble.ops.reference.embedding import embedding
from nybble.ops.reference.gate import gelu_mul, silu_mul
from nybble.ops.reference.int8 import int8_matmul, layer_norm_int8, quantize_int8
from nybble.ops.reference.kv import fp8_decode_, fp8_encode_, kv_dequantize_, kv_quantize_
from nybble.ops.reference.matmul import matmul
from nybble.ops.reference.moe import moe_route
from nybble.ops.reference.norm import layer_norm, layer_norm_, rms_norm, rms_norm_
from nybble.ops.reference.paged_attention import paged_attention
from nybble.ops.reference.qmatmul import qmatmul
from nybble.ops.reference.quantize import gptq_group_, quantize_columns, quantize_error
from nybble.ops.reference.rope import rope_
from nybble.ops.reference.sample import repetition_penalty_, sample
from nybble.ops.reference.sample_chain import sample_chain
from nybble.ops.reference.softcap import softcap_

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "qmatmul": qmatmul,
    "dequantize": dequantize,
    "matmul": matmul,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "rms_norm_": rms_norm_,
    "layer_norm_": layer_norm_,
    "softcap_": softcap_,
    "kv_quantize_": kv_quantize_,
    "kv_dequantize_": kv_dequantize_,
    "fp8_encode_": fp8_encode_,
    "fp8_decode_": fp8_decode_,
    "rope_": rope_,
    "attention": attention,
    "cached_attention_": cached_attention_,
    "silu_mul": silu_mul,
    "gelu_mul": gelu_mul,
    "moe_route": moe_route,
    "embedding": embedding,
    "sample": sample,
    "sample_chain": sample_chain,
    "repetition_penalty_": repetition_penalty_,
    "quantize_columns": quantize_columns,
    "quantize_error": quantize_error,
    "gptq_group_": gptq_group_,
    "anneal_knapsack": anneal_knapsack,
    "quantize_int8": quantize_int8,
    "layer_norm_int8": layer_norm_int8,
    "int8_matmul": int8_matmul,
    "decode_attention": decode_attention,
    "paged_attention": paged_attention,
}
