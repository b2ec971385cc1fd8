"""``matmul``: an unquantized layer."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_matmul = torch.ops.nybble.matmul.default


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = x @ weight.T + bias``, accumulated in float32.

    Args:
        x: ``[..., K]`` float32, float16 or bfloat16, any strides.
        weight: ``[N, K]`` of any of these types, contiguous.
        bias: ``[N]`` in weight's dtype, or None.

    On a GPU and with one dtype for all, many rows are torch's own product, which follows its settings (TF32, half sums).

    Returns ``[..., N]`` in x's dtype. Raises ``RuntimeError`` naming what does not fit.

    >>> matmul(torch.ones(1, 3), torch.ones(2, 3))
    tensor([[3., 3.]])
    """
    ensure_loaded()
    y: Tensor = _matmul(x, weight, bias)
    return y


@register_fake("nybble::matmul")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
