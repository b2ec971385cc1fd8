"""``decode_attention``: one query a sequence over a ring of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_decode_attention = torch.ops.nybble.decode_attention.default


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    slopes: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """``o[b, h] = softmax(scale * q[b, h] . k[b, t, g] + slopes[h] * (t - n)) v[b, t, g]`` over the tokens t in the cache.

    Sequence b has seen ``lengths[b]`` tokens, the last at position ``n = lengths[b] - 1``. Token t lies in slot ``t % L``, so
    the last L of them are there: t runs from ``max(0, lengths[b] - L)`` to n. ``g = h // (H / Hk)``. Length 0 gives zeros.

    Args:
        q: ``[B, H, D]`` float32, float16 or bfloat16, any strides.
        k_cache: ``[B, Hk, D/x, L, x]`` in q's dtype, contiguous, x = 16 bytes of elements: channel d of slot s is
            ``[b, g, d // x, s, d % x]``. H a multiple of Hk.
        v_cache: ``[B, Hk, L, D]`` in q's dtype, contiguous.
        lengths: int64 ``[B]``, 0 or more; may exceed L. On a GPU one below 0 counts as 0.
        slopes: float32 ``[H]``, contiguous; a positive one favours near tokens (ALiBi). None: 0.
        scale: None: ``D ** -0.5``.

    Returns ``[B, H, D]`` in q's dtype, contiguous. Slots without a token are not read into it. Raises ``RuntimeError`` naming
    what does not fit.

    >>> k, v = torch.ones(1, 1, 1, 3, 4), torch.ones(1, 1, 3, 4)
    >>> decode_attention(torch.ones(1, 1, 4), k, v, torch.tensor([2])).flatten()
    tensor([1., 1., 1., 1.])
    """
    ensure_loaded()
    if scale is None:
        scale = float(q.shape[-1]) ** -0.5
    o: Tensor = _decode_attention(q, k_cache, v_cache, lengths, slopes, scale)
    return o


@register_fake("nybble::decode_attention")
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    slopes: Tensor | None,
    scale: float,
) -> Tensor:
    return q.new_empty(q.shape)
