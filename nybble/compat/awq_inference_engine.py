"""``awq_inference_engine`` over nybble's ops: the old names, positional orders and in-place effects."""

from __future__ import annotations

from nybble.compat.awq.matmul import (
    gemm_forward_cuda,
    gemm_forward_cuda_new,
    gemv_forward_cuda,
    gemv_forward_cuda_new,
)

__all__ = [
    "gemm_forward_cuda",
    "gemm_forward_cuda_new",
    "gemv_forward_cuda",
    "gemv_forward_cuda_new",
]
