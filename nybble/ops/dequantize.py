"""``dequantize``: the numbers of a packed matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake
from nybble.ops.packed import PackedMatrix

_dequantize = torch.ops.nybble.dequantize.default


def dequantize(packed: PackedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """``W[perm[k], n] = (code[k, n] - zero[g, n]) * scale[g, n]``: a packed matrix as plain numbers, without the bias.

    Args:
        packed: the matrix; ``perm``, where it has one, holds each input feature once.
        dtype: float32, float16 or bfloat16. The product is rounded to float32, then to this.

    Returns ``[K, N]`` in input order, on the matrix's device. Raises ``RuntimeError`` naming what does not fit.

    >>> from nybble.ops.packed import make_packed
    >>> codes = torch.arange(4, dtype=torch.uint8).expand(32, 4)
    >>> half = torch.full((1, 4), 0.5, dtype=torch.float16)
    >>> matrix = make_packed(codes, half, torch.tensor([2]), torch.zeros(32, dtype=torch.int64))
    >>> dequantize(matrix)[0]
    tensor([-1.0000, -0.5000,  0.0000,  0.5000])
    """
    ensure_loaded()
    W: Tensor = _dequantize(
        packed.weight,
        packed.scales,
        packed.zeros,
        packed.perm,
        packed.blocks,
        packed.K,
        packed.N,
        dtype,
    )
    return W


@register_fake("nybble::dequantize")
def _(
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    blocks: Tensor,
    K: int,
    N: int,
    dtype: torch.dtype,
) -> Tensor:
    return weight.new_empty((K, N), dtype=dtype)
