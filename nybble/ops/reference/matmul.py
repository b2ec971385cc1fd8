"""Meaning of ``matmul``."""

from __future__ import annotations

from torch import Tensor

from nybble.ops.reference import check


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``, accumulated in float32."""
    check.floats("matmul", x=x, weight=weight)
    check.require(x.dim() >= 1, "matmul: x has shape [], expected [..., K]")
    check.rank("matmul", "weight", weight, "N, K", 2)
    check.shape("matmul", "weight", weight, "N, K", weight.shape[0], x.shape[-1])
    check.dtype("matmul", weight.dtype, bias=bias)
    check.shape("matmul", "bias", bias, "N", weight.shape[0])
    y = x.float() @ weight.float().T
    return (y if bias is None else y + bias.float()).to(x.dtype).contiguous()
