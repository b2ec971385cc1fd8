"""Meaning of ``dequantize``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops import packed
from nybble.ops.reference import check


def dequantize(
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    blocks: Tensor,
    K: int,
    N: int,
    dtype: torch.dtype,
) -> Tensor:
    """``W[perm[k], n] = (code[k, n] - zero[g, n]) * scale[g, n]``."""
    op = "dequantize"
    check.require(dtype in check.FLOATS, f"{op}: dtype is {dtype}, expected a float type")
    matrix = packed.PackedMatrix(K, N, weight, scales, blocks, zeros, perm)
    check.packed(op, matrix)
    if perm is not None:
        real = perm[perm >= 0]
        check.require(
            real.numel() == K and real.unique().numel() == K,
            f"{op}: perm holds {real.unique().numel()} of K = {K} inputs, expected each once",
        )
    return packed.dequantize(matrix).to(dtype)
