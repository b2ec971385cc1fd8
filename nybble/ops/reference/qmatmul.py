"""Meaning of ``qmatmul``."""

from __future__ import annotations

from torch import Tensor

from nybble.ops.packed import PackedMatrix, dequantize
from nybble.ops.reference import check


def qmatmul(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    blocks: Tensor,
    bias: Tensor | None,
    N: int,
    act_bits: int,
) -> Tensor:
    """``x @ W + bias`` with ``W`` dequantized to float32. ``act_bits`` is checked, then ignored: activations stay float."""
    op = "qmatmul"
    check.floats(op, x=x)
    check.require(x.dim() >= 1, f"{op}: x has shape [], expected [..., K]")
    check.require(act_bits in (8, 16, 32), f"{op}: act_bits is {act_bits}, expected 8, 16 or 32")
    matrix = PackedMatrix(x.shape[-1], N, weight, scales, blocks, zeros, perm)
    check.packed(op, matrix)
    check.dtype(op, x.dtype, bias=bias)
    check.shape(op, "bias", bias, "N", N)
    y = x.float() @ dequantize(matrix)
    return (y if bias is None else y + bias.float()).to(x.dtype).contiguous()
