"""Meaning of ``cached_attention_``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check
from nybble.ops.reference.attention import attention
from nybble.ops.reference.rope import rope_


def cached_attention_(
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
    """``rope_`` on q and k, the new keys and values stored, ``attention`` over the store."""
    op = "cached_attention_"
    check.rank(op, "qkv", qkv, "B, T, (H+2Hk)D", 3)
    check.rank(op, "keys", keys, "B, Hk, S, D", 4)
    check.dtype(op, qkv.dtype, keys=keys, values=values)
    check.require(qkv.is_contiguous(), f"{op}: qkv is not contiguous")
    B, T, width = qkv.shape
    _, Hk, S, D = keys.shape
    check.shape(op, "keys", keys, "B, Hk, S, D", B, Hk, S, D)
    check.shape(op, "values", values, "B, Hk, S, D", B, Hk, S, D)
    fits = Hk > 0 and D > 0 and width % D == 0 and (width // D) % Hk == 0 and width // D > 2 * Hk
    check.require(
        fits,
        f"{op}: qkv has {width} columns, expected (H + 2 Hk) D with H a multiple of Hk = {Hk} and D = {D} from keys",
    )
    check.dtype(op, torch.int64, lengths=lengths)
    check.shape(op, "lengths", lengths, "B", B)
    check.within(op, "lengths", lengths, T, S + 1)
    heads = qkv.view(B, T, width // D, D)
    q, k, v = heads.split([width // D - 2 * Hk, Hk, Hk], dim=2)
    rope_(heads[:, :, :-Hk], cos, sin, positions, neox)
    rows = torch.arange(B, device=keys.device)[:, None]
    at = lengths[:, None] - T + torch.arange(T, device=keys.device)
    by_token = keys.transpose(1, 2), values.transpose(1, 2)
    by_token[0][rows, at], by_token[1][rows, at] = k, v
    return attention(q, *by_token, lengths, scale, True, window).flatten(2)
