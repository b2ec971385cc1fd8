"""``softcap_``: logits bent smoothly into a range."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_softcap = torch.ops.nybble.softcap_.default


def softcap_(x: Tensor, cap: float) -> Tensor:
    """``x = cap tanh(x / cap)`` in place, computed in float32: near 0 as it was, never beyond ``cap``.

    Args:
        x: ``[..., D]`` float32, float16 or bfloat16, any strides; changed in place.
        cap: finite, more than 0.

    Returns ``x``. Raises ``RuntimeError`` naming what does not fit.

    >>> softcap_(torch.tensor([0.0, 1e9, -1e9]), 30.0)
    tensor([  0.,  30., -30.])
    """
    ensure_loaded()
    _softcap(x, cap)
    return x


@register_fake("nybble::softcap_")
def _(x: Tensor, cap: float) -> None:
    return None
