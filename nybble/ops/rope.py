"""``rope_``: rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_rope = torch.ops.nybble.rope_.default


def rope_(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, neox: bool = True) -> Tensor:
    """Rotate the first ``R`` of ``D`` channels in place: ``(a, b) -> (a cos - b sin, b cos + a sin)``.

    Args:
        x: ``[B, T, H, D]`` float32, float16 or bfloat16, unit stride along D; changed in place.
        cos, sin: float32 ``[P, R/2]``, contiguous, ``R <= D``.
        positions: int64 ``[B, T]``, each in ``[0, P)``; on a GPU one outside gives NaN.
        neox: pair channel ``i`` with ``i + R/2``; otherwise ``2i`` with ``2i + 1``.

    Returns ``x``. Raises ``RuntimeError`` naming what does not fit.

    >>> x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    >>> rope_(x, torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)).flatten()
    tensor([0., 1.])
    """
    ensure_loaded()
    _rope(x, cos, sin, positions, neox)
    return x


@register_fake("nybble::rope_")
def _(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, neox: bool) -> None:
    return None
