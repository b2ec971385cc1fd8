"""Meaning of ``qmatmul``."""

from __future__ import annotations

from torch import Tensor

from nybble.ops.packed import PackedMatrix, dequantize
from nybble.ops.reference import check
from nybble.ops.reference.gate import gelu_mul, silu_mul
from nybble.ops.reference.norm import rms_norm


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
    norm: Tensor | None = None,
    eps: float = 0.0,
    gate: int = -1,
    add: Tensor | None = None,
    invariant: bool = False,
) -> Tensor:
    """``x @ W + bias`` with ``W`` dequantized to float32. ``act_bits`` is checked, then ignored: activations stay float."""
    op = "qmatmul"
    x = _prepared(x, norm, eps, gate)
    check.floats(op, x=x)
    check.require(act_bits in (8, 16, 32), f"{op}: act_bits is {act_bits}, expected 8, 16 or 32")
    matrix = PackedMatrix(x.shape[-1], N, weight, scales, blocks, zeros, perm)
    check.packed(op, matrix)
    check.dtype(op, x.dtype, bias=bias)
    check.shape(op, "bias", bias, "N", N)
    y = x.float() @ dequantize(matrix)
    if bias is not None:
        y = y + bias.float()
    if add is not None:
        check.dtype(op, x.dtype, add=add)
        check.shape(op, "add", add, "..., N", *y.shape)
        y = y + add.float()
    return y.to(x.dtype).contiguous()


def _prepared(x: Tensor, norm: Tensor | None, eps: float, gate: int) -> Tensor:
    """What is done to ``x`` before the product."""
    op = "qmatmul"
    check.require(
        norm is None or gate < 0, f"{op}: norm and gate are both given, expected one of them"
    )
    check.require(x.dim() >= 1, f"{op}: x has shape [], expected [..., K]")
    if norm is not None:
        return rms_norm(x, norm, eps)
    if gate < 0:
        return x
    check.require(
        gate <= 2, f"{op}: gate is {gate}, expected 0 (silu), 1 (gelu) or 2 (gelu by tanh)"
    )
    check.require(
        x.shape[-1] % 2 == 0,
        f"{op}: x has {x.shape[-1]} columns, expected a gate and as many to be gated",
    )
    left, right = x.chunk(2, -1)
    return silu_mul(left, right) if gate == 0 else gelu_mul(left, right, gate == 2)
