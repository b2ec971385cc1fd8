"""Meaning of ``attention``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
) -> Tensor:
    """``softmax(scale * q k^T) v`` over the visible keys; zeros where none is visible."""
    _check(q, k, v, lengths, window)
    B, T, H, _ = q.shape
    S, Hk = k.shape[1], k.shape[2]
    ends = torch.full((B,), S, device=q.device) if lengths is None else lengths
    key = torch.arange(S, device=q.device)
    place = ends[:, None] - T + torch.arange(T, device=q.device)  # [B, T]
    visible = (key < ends[:, None])[:, None, :].expand(B, T, S)
    if causal:
        visible = visible & (key <= place[:, :, None])
    if window > 0:
        visible = visible & (key > place[:, :, None] - window)
    hidden = ~visible[:, None]  # [B, 1, T, S]
    # Rows past a sequence's length may hold anything, NaN too: take them out of both products.
    past = (key >= ends[:, None])[:, :, None, None]
    keys = k.float().masked_fill(past, 0).repeat_interleave(H // Hk, dim=2)
    values = v.float().masked_fill(past, 0).repeat_interleave(H // Hk, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", q.float() * scale, keys)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).masked_fill(hidden, 0)
    return torch.einsum("bhts,bshd->bthd", weights, values).to(q.dtype).contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, window: int) -> None:
    op = "attention"
    check.floats(op, q=q)
    check.dtype(op, q.dtype, k=k, v=v)
    check.rank(op, "q", q, "B, T, H, D", 4)
    check.rank(op, "k", k, "B, S, Hk, D", 4)
    B, _, H, D = q.shape
    _, S, Hk, _ = k.shape
    check.shape(op, "k", k, "B, S, Hk, D", B, S, Hk, D)
    check.shape(op, "v", v, "B, S, Hk, D", B, S, Hk, D)
    check.require(
        Hk > 0 and H % Hk == 0,
        f"{op}: q has H = {H} heads, expected a multiple of k's Hk = {Hk}",
    )
    check.require(window >= 0, f"{op}: window is {window}, expected 0 (no window) or more")
    check.dtype(op, torch.int64, lengths=lengths)
    check.shape(op, "lengths", lengths, "B", B)
    if lengths is not None:
        check.within(op, "lengths", lengths, 0, S + 1)
