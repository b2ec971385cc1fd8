"""The ops: typed functions over ``torch.ops.nybble``. The first call loads the native library, or the reference.

>>> import torch
>>> from nybble import ops
>>> ops.rms_norm(torch.ones(1, 4), torch.full((4,), 2.0), eps=0.0)
tensor([[2., 2., 2., 2.]])
"""

from nybble.ops.anneal import anneal_knapsack
from nybble.ops.attention import attention
from nybble.ops.cached_attention import cached_attention_
from nybble.ops.decode_attention import decode_attention
from nybble.ops.dequantize import dequantize
from nybble.ops.embedding import embedding
from nybble.ops.gate import gelu_mul, silu_mul
from nybble.ops.hadamard import paley1, paley2
from nybble.ops.int8 import int8_matmul, layer_norm_int8, quantize_int8
from nybble.ops.kv import fp8_decode_, fp8_encode_, kv_dequantize_, kv_quantize_
from nybble.ops.lora import lora_add_
from nybble.ops.matmul import matmul
from nybble.ops.moe import moe_apply, moe_route
from nybble.ops.mrope import VisionSpan, mrope_positions
from nybble.ops.norm import layer_norm, layer_norm_, rms_norm, rms_norm_
from nybble.ops.packed import PackedMatrix
from nybble.ops.paged_attention import paged_attention
from nybble.ops.pages import common_prefix, paged_runs, rotate_pages_
from nybble.ops.qmatmul import qmatmul
from nybble.ops.quantize import gptq_group_, quantize_columns, quantize_error
from nybble.ops.rope import rope_
from nybble.ops.sample import repetition_penalty_, sample
from nybble.ops.sample_chain import sample_chain
from nybble.ops.shards import all_reduce_, broadcast_, gather_columns_
from nybble.ops.softcap import softcap_

__all__ = [
    "PackedMatrix",
    "VisionSpan",
    "all_reduce_",
    "anneal_knapsack",
    "attention",
    "broadcast_",
    "cached_attention_",
    "common_prefix",
    "decode_attention",
    "dequantize",
    "embedding",
    "fp8_decode_",
    "fp8_encode_",
    "gather_columns_",
    "gelu_mul",
    "gptq_group_",
    "int8_matmul",
    "kv_dequantize_",
    "kv_quantize_",
    "layer_norm",
    "layer_norm_",
    "layer_norm_int8",
    "lora_add_",
    "matmul",
    "moe_apply",
    "moe_route",
    "mrope_positions",
    "paged_attention",
    "paged_runs",
    "paley1",
    "paley2",
    "qmatmul",
    "quantize_columns",
    "quantize_error",
    "quantize_int8",
    "repetition_penalty_",
    "rms_norm",
    "rms_norm_",
    "rope_",
    "rotate_pages_",
    "sample",
    "sample_chain",
    "silu_mul",
    "softcap_",
]
