"""``awq_inference_engine`` over nybble's ops: the old names, positional orders and in-place effects."""

from __future__ import annotations

from nybble.compat.awq.attention import single_query_attention
from nybble.compat.awq.int8 import w8a8_gemm_forward_cuda, w8a8_gemm_fuse_bias_forward_cuda
from nybble.compat.awq.matmul import (
    gemm_forward_cuda,
    gemm_forward_cuda_new,
    gemv_forward_cuda,
    gemv_forward_cuda_new,
)
from nybble.compat.awq.norm import (
    gelu_and_quant,
    invoke_quant,
    layernorm_forward_cuda,
    rms_norm_general,
    silu_and_mul,
)
from nybble.compat.awq.rotary import fused_rope_with_pos_forward_func, rotary_embedding_neox

__all__ = [
    "fused_rope_with_pos_forward_func",
    "gelu_and_quant",
    "gemm_forward_cuda",
    "gemm_forward_cuda_new",
    "gemv_forward_cuda",
    "gemv_forward_cuda_new",
    "invoke_quant",
    "layernorm_forward_cuda",
    "rms_norm_general",
    "rotary_embedding_neox",
    "silu_and_mul",
    "single_query_attention",
    "w8a8_gemm_forward_cuda",
    "w8a8_gemm_fuse_bias_forward_cuda",
]
