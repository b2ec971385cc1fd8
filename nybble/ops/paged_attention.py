"""``paged_attention``: a few queries a sequence over pages of keys and values, as numbers or as codes."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble import env
from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_paged_attention = torch.ops.nybble.paged_attention.default


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """``o[b, t, h] = softmax(cap(scale * q[b, t, h] . k[s, g]) + slopes[h] * (s - p)) v[s, g]`` over the visible tokens s.

    Query ``t`` stands at ``p = lengths[b] - T + t``. Visible: ``s <= p``; ``s > p - window`` if window > 0. Token s lies in slot
    ``s % page`` of page ``block_table[b, s // page]``; ``g = h // (H / Hk)``; ``cap(x) = softcap * tanh(x / softcap)`` if
    softcap > 0. A query that sees no token gives zeros.

    Keys and values may be of q's dtype, or what :func:`fp8_encode_` or :func:`kv_quantize_` made of half numbers: these are
    read as they are, and each of the two may have a width of its own.

    Args:
        q: ``[B, T, H, D]`` float32, float16 or bfloat16; not float32 where keys or values are bytes. Any strides.
        keys, values: ``[P, page, Hk, D]`` in q's dtype, unit stride along D; H a multiple of Hk. Or uint8: float8 of that shape
            without scales; codes ``[P, page, Hk, D * bits / 8]`` of 8 or 4 bits with scales, contiguous, D a multiple of 32 and
            ``Hk * D`` of 64.
        block_table: int32 ``[B, n]``, page numbers; looked at only as far as a sequence has tokens.
        lengths: int64 ``[B]``: tokens held, the T new ones included; each in ``[0, n * page]``.
        key_scales, value_scales: float16 ``[P, page, Hk, D / 32]``, contiguous.
        slopes: float32 ``[H]``, contiguous; a positive one favours near tokens (ALiBi). None: 0.
        scale: None: ``D ** -0.5``.
        window, softcap: 0: none.

    Returns ``[B, T, H, D]`` in q's dtype, contiguous. Raises ``RuntimeError`` naming what does not fit. On a GPU a page that does
    not exist counts as NaN, lengths are clamped, and ``NYBBLE_BATCH_INVARIANT=1`` makes a sequence's result independent, to the
    bit, of the rest of its batch.

    >>> pages, table = torch.ones(3, 16, 1, 8), torch.tensor([[2, 0]], dtype=torch.int32)
    >>> paged_attention(torch.ones(1, 1, 2, 8), pages, pages, table, torch.tensor([20])).unique()
    tensor([1.])
    """
    ensure_loaded()
    if scale is None:
        scale = float(q.shape[-1]) ** -0.5
    o: Tensor = _paged_attention(
        q,
        keys,
        values,
        key_scales,
        value_scales,
        block_table,
        lengths,
        slopes,
        scale,
        window,
        softcap,
        env.flag("NYBBLE_BATCH_INVARIANT"),
    )
    return o


@register_fake("nybble::paged_attention")
def _(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    block_table: Tensor,
    lengths: Tensor,
    slopes: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    invariant: bool = False,
) -> Tensor:
    return q.new_empty(q.shape)
