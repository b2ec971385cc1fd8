"""Meaning of ``decode_attention``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    slopes: Tensor | None,
    scale: float,
) -> Tensor:
    """``softmax(scale * q k^T + slopes * (t - n)) v`` over the tokens in the ring."""
    _check(q, k_cache, v_cache, lengths, slopes)
    H, Hk, L = q.shape[1], v_cache.shape[1], v_cache.shape[2]
    slot = torch.arange(L, device=q.device)
    last = lengths[:, None] - 1
    # How many tokens ago the one in each slot came; a slot that is still empty would have come before the first.
    age = (last - slot).remainder(L) if L else slot.expand(q.shape[0], 0)
    empty = age > last  # [B, L]
    # [B, Hk, D/x, L, x] -> [B, Hk, L, D]; empty slots may hold anything, NaN too.
    keys = k_cache.float().transpose(2, 3).flatten(3).masked_fill(empty[:, None, :, None], 0)
    values = v_cache.float().masked_fill(empty[:, None, :, None], 0)
    keys, values = (t.repeat_interleave(H // Hk, dim=1) for t in (keys, values))
    scores = torch.einsum("bhd,bhld->bhl", q.float() * scale, keys)
    if slopes is not None:
        scores = scores - slopes[:, None] * age[:, None]
    hidden = empty[:, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).masked_fill(hidden, 0)
    return torch.einsum("bhl,bhld->bhd", weights, values).to(q.dtype).contiguous()


def _check(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, slopes: Tensor | None
) -> None:
    op = "decode_attention"
    check.floats(op, q=q)
    check.dtype(op, q.dtype, k_cache=k_cache, v_cache=v_cache)
    check.rank(op, "q", q, "B, H, D", 3)
    check.rank(op, "v_cache", v_cache, "B, Hk, L, D", 4)
    check.rank(op, "k_cache", k_cache, "B, Hk, D/x, L, x", 5)
    B, H, D = q.shape
    _, Hk, L, _ = v_cache.shape
    check.shape(op, "v_cache", v_cache, "B, Hk, L, D", B, Hk, L, D)
    x = 16 // q.element_size()
    check.require(D % x == 0, f"{op}: q has D = {D}, expected a multiple of {x} (16 bytes)")
    check.shape(op, "k_cache", k_cache, "B, Hk, D/x, L, x", B, Hk, D // x, L, x)
    check.require(
        Hk > 0 and H % Hk == 0,
        f"{op}: q has H = {H} heads, expected a multiple of v_cache's Hk = {Hk}",
    )
    check.dtype(op, torch.int64, lengths=lengths)
    check.shape(op, "lengths", lengths, "B", B)
    check.require(bool((lengths >= 0).all()), f"{op}: lengths has a negative one")
    check.dtype(op, torch.float32, slopes=slopes)
    check.shape(op, "slopes", slopes, "H", H)
