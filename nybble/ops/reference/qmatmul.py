"""Meaning of ``qmatmul``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.packed import COLUMNS, PLANES, ROWS, PackedMatrix, dequantize
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
) -> Tensor:
    """``x @ W + bias`` with ``W`` dequantized to float32. ``act_bits`` is checked, then ignored: activations stay float."""
    x = _prepared(x, norm, eps, gate)
    _check(x, weight, scales, zeros, perm, blocks, bias, N, act_bits)
    matrix = PackedMatrix(x.shape[-1], N, weight, scales, blocks, zeros, perm)
    y = x.float() @ dequantize(matrix)
    if bias is not None:
        y = y + bias.float()
    if add is not None:
        check.dtype("qmatmul", x.dtype, add=add)
        check.shape("qmatmul", "add", add, "..., N", *y.shape)
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


def _check(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    blocks: Tensor,
    bias: Tensor | None,
    N: int,
    act_bits: int,
) -> None:
    op = "qmatmul"
    check.floats(op, x=x)
    check.require(act_bits in (8, 16, 32), f"{op}: act_bits is {act_bits}, expected 8, 16 or 32")
    check.require(N >= 0, f"{op}: N is {N}, expected 0 or more")
    K, NB = x.shape[-1], -(-N // COLUMNS)
    check.dtype(op, torch.float16, scales=scales)
    check.rank(op, "scales", scales, "N/16, G, 16", 3)
    G = scales.shape[1]
    check.shape(op, "scales", scales, "N/16, G, 16", NB, G, COLUMNS)
    check.dtype(op, torch.float32, zeros=zeros)
    check.shape(op, "zeros", zeros, "N/16, G, 16", NB, G, COLUMNS)
    check.require(blocks.device.type == "cpu", f"{op}: blocks must be on the CPU")
    check.dtype(op, torch.int32, blocks=blocks)
    check.rank(op, "blocks", blocks, "KB, 2", 2)
    KB = blocks.shape[0]
    check.shape(op, "blocks", blocks, "KB, 2", KB, 2)
    widths = blocks[:, 0].tolist()
    check.require(
        all(bits in PLANES for bits in widths),
        f"{op}: blocks has widths {sorted(set(widths))}, expected 2, 3, 4, 5, 6 or 8",
    )
    check.within(op, "blocks' group", blocks[:, 1], 0, G)
    check.dtype(op, torch.uint8, weight=weight)
    check.require(
        weight.numel() == NB * 64 * sum(widths),
        f"{op}: weight has {weight.numel()} bytes, expected {NB} column blocks of {64 * sum(widths)} bytes",
    )
    check.dtype(op, torch.int32, perm=perm)
    check.shape(op, "perm", perm, "KB*32", KB * ROWS)
    if perm is not None:
        check.within(op, "perm", perm, -1, K)
    else:
        check.require(
            KB * ROWS >= K, f"{op}: x has K = {K} inputs, but blocks hold only {KB * ROWS} rows"
        )
    check.dtype(op, x.dtype, bias=bias)
    check.shape(op, "bias", bias, "N", N)
