"""``embedding``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_embedding = torch.ops.nybble.embedding.default


def embedding(ids: Tensor, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``y[i] = weight[ids[i]]`` in ``dtype``.

    Args:
        ids: int64 ``[...]``, each in ``[0, V)``.
        weight: ``[V, D]`` float32, float16 or bfloat16, contiguous.
        dtype: one of these types.

    Returns ``[..., D]``. Raises ``RuntimeError`` for an id outside the table, which on a GPU gives NaN instead, and for what
    does not fit.

    >>> embedding(torch.tensor([1]), torch.tensor([[1.0], [2.0]]))
    tensor([[2.]])
    """
    ensure_loaded()
    y: Tensor = _embedding(ids, weight, dtype)
    return y


@register_fake("nybble::embedding")
def _(ids: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.new_empty((*ids.shape, weight.shape[1]), dtype=dtype)
