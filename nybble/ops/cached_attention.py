"""``cached_attention_``: rotary positions, the cache's new entries and attention over it, in one step."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_cached_attention = torch.ops.nybble.cached_attention_.default


def cached_attention_(
    qkv: Tensor,
    rope: tuple[Tensor, Tensor, Tensor],
    cache: tuple[Tensor, Tensor, Tensor],
    *,
    scale: float | None = None,
    window: int = 0,
    neox: bool = True,
) -> Tensor:
    """``q, k = rope(q, k)``; ``keys[b, h, n_b - T + t] = k[b, t, h]``, values likewise; then causal
    :func:`attention` of ``q`` over the first ``n_b`` keys and values.

    Args:
        qkv: ``[B, T, (H + 2 Hk) D]`` float32, float16 or bfloat16, contiguous: q, k and v side by side. q and k are
            changed in place.
        rope: ``cos``, ``sin`` float32 ``[P, R/2]`` and ``positions`` int64 ``[B, T]``, as :func:`rope_` takes them.
        cache: ``keys``, ``values`` ``[B, Hk, S, D]`` in qkv's dtype, unit stride along D, changed in place; int64
            ``lengths [B] = n``, each in ``[T, S]``: tokens held once the new ones are in. A GPU clamps them to ``[0, S]``
            and stores no token before the first slot.
        scale: None: ``D ** -0.5``.
        window: each query sees that many keys; 0: all before it.
        neox: as for :func:`rope_`.

    Returns ``[B, T, H D]``. Raises ``RuntimeError`` naming what does not fit.

    >>> cos, sin = torch.ones(4, 1), torch.zeros(4, 1)  # turns nothing
    >>> keys, values = torch.zeros(2, 1, 1, 4, 2)
    >>> qkv = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 5.0, 7.0]]])
    >>> cached_attention_(qkv, (cos, sin, torch.tensor([[0]])), (keys, values, torch.tensor([1])))
    tensor([[[5., 7.]]])
    """
    ensure_loaded()
    if scale is None:
        scale = float(cache[0].shape[-1]) ** -0.5
    o: Tensor = _cached_attention(qkv, *rope, neox, *cache, scale, window)
    return o


@register_fake("nybble::cached_attention_")
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    neox: bool,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    return qkv.new_empty((*qkv.shape[:2], qkv.shape[2] - 2 * keys.shape[1] * keys.shape[3]))
