"""``attention``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_attention = torch.ops.nybble.attention.default


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
) -> Tensor:
    """``o[b, t, h] = softmax(scale * q[b, t, h] . k[b, s, h // (H / Hk)]) v`` over the visible keys ``s``.

    Query ``t`` stands at ``p = lengths[b] - T + t``. Visible: ``s < lengths[b]``; ``s <= p`` if causal;
    ``s > p - window`` if window > 0. A query that sees no key gives zeros.

    Args:
        q: ``[B, T, H, D]`` float32, float16 or bfloat16.
        k, v: ``[B, S, Hk, D]`` in q's dtype; H a multiple of Hk. Only unit stride along D avoids a copy.
        lengths: int64 ``[B]``, each in ``[0, S]``; None: S. What lies beyond is never read into the result.
            A GPU clamps them.
        scale: None: ``D ** -0.5``.
        window: 0: none.

    Returns ``[B, T, H, D]``, contiguous. Raises ``RuntimeError`` naming what does not fit.

    >>> attention(torch.ones(1, 1, 1, 2), torch.ones(1, 3, 1, 2), torch.ones(1, 3, 1, 2), None).flatten()
    tensor([1., 1.])
    """
    ensure_loaded()
    if scale is None:
        scale = float(q.shape[-1]) ** -0.5
    o: Tensor = _attention(q, k, v, lengths, scale, causal, window)
    return o


@register_fake("nybble::attention")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
) -> Tensor:
    return q.new_empty(q.shape)
