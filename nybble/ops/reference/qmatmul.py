"""Meaning of ``qmatmul``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.packed import COLUMNS, PLANES, ROWS, PackedMatrix, dequantize
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
    _check(x, weight, scales, zeros, perm, blocks, bias, N, act_bits)
    matrix = PackedMatrix(x.shape[-1], N, weight, scales, blocks, zeros, perm)
    y = x.float() @ dequantize(matrix)
    return (y if bias is None else y + bias.float()).to(x.dtype).contiguous()


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
    check.require(x.dim() >= 1, f"{op}: x has shape [], expected [..., K]")
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
