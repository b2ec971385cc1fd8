"""Meaning of ``paged_attention``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check
from nybble.ops.reference.kv import fp8_decode_, kv_dequantize_

OP = "paged_attention"


def paged_attention(
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
    """One sequence at a time: its pages gathered, then scores, softmax, sum."""
    _check(q, block_table, lengths, slopes, window, softcap)
    _check_stored("keys", keys, key_scales, q)
    _check_stored("values", values, value_scales, q)
    P, page, Hk = keys.shape[:3]
    check.shape(OP, "values", values, "P, page, Hk, D", P, page, Hk, values.shape[3])
    B, T, H, D = q.shape
    check.require(
        Hk > 0 and H % Hk == 0,
        f"{OP}: q has H = {H} heads, expected a multiple of keys' Hk = {Hk}",
    )
    check.within(OP, "lengths", lengths, 0, block_table.shape[1] * page + 1)
    o = torch.zeros(B, T, H, D, dtype=torch.float32, device=q.device)
    for b, length in enumerate(lengths.tolist() if q.numel() else []):
        pages = block_table[b, : -(-length // page) if page else 0].long()
        check.within(OP, "block_table", pages, 0, P)
        k, v = (
            _gathered(t, scales, pages, D)[:length].repeat_interleave(H // Hk, dim=1)
            for t, scales in ((keys, key_scales), (values, value_scales))
        )
        key = torch.arange(length, device=q.device)
        place = length - T + torch.arange(T, device=q.device)
        back = place[:, None] - key  # [T, S]
        hidden = back < 0
        if window > 0:
            hidden = hidden | (back >= window)
        scores = torch.einsum("thd,shd->hts", q[b].float() * scale, k)
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        if slopes is not None:
            scores = scores - slopes[:, None, None] * back
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).masked_fill(hidden, 0)
        o[b] = torch.einsum("hts,shd->thd", weights, v)
    return o.to(q.dtype)


def _gathered(stored: Tensor, scales: Tensor | None, pages: Tensor, D: int) -> Tensor:
    """Those pages as float32 ``[tokens, Hk, D]``."""
    some = stored[pages].contiguous()
    if stored.dtype != torch.uint8:
        return some.float().flatten(0, 1)
    x = torch.empty(*some.shape[:3], D, dtype=torch.float16, device=stored.device)
    if scales is None:
        fp8_decode_(x, some)
    else:
        runs = torch.tensor([[0, some.shape[0] * some.shape[1]]])
        kv_dequantize_(x, some, scales[pages].contiguous(), runs, bits=8 * some.shape[3] // D)
    return x.float().flatten(0, 1)


def _check(
    q: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    slopes: Tensor | None,
    window: int,
    softcap: float,
) -> None:
    check.floats(OP, q=q)
    check.rank(OP, "q", q, "B, T, H, D", 4)
    B, H = q.shape[0], q.shape[2]
    check.dtype(OP, torch.int32, block_table=block_table)
    check.rank(OP, "block_table", block_table, "B, n", 2)
    check.shape(OP, "block_table", block_table, "B, n", B, block_table.shape[1])
    check.dtype(OP, torch.int64, lengths=lengths)
    check.shape(OP, "lengths", lengths, "B", B)
    check.dtype(OP, torch.float32, slopes=slopes)
    check.shape(OP, "slopes", slopes, "H", H)
    check.require(window >= 0, f"{OP}: window is {window}, expected 0 (no window) or more")
    check.require(softcap >= 0, f"{OP}: softcap is {softcap}, expected 0 (none) or more")


def _check_stored(name: str, t: Tensor, scales: Tensor | None, q: Tensor) -> None:
    check.rank(OP, name, t, "P, page, Hk, D or D / 2", 4)
    D, (P, page, Hk, width) = q.shape[3], t.shape
    if t.dtype != torch.uint8:
        check.dtype(OP, q.dtype, **{name: t})
        check.require(scales is None, f"{OP}: {name} has scales, but is not uint8; expected uint8")
        check.shape(OP, name, t, "P, page, Hk, D", P, page, Hk, D)
        return
    check.require(
        q.dtype != torch.float32, f"{OP}: {name} is uint8, which q's dtype float32 does not go with"
    )
    check.require(
        width == D or (scales is not None and 2 * width == D),
        f"{OP}: {name} has rows of {width} bytes, expected D (q's dtype or float8 bytes), "
        f"or D or D / 2 bytes of codes with scales, D = {D} from q",
    )
    if scales is not None:
        check.require(
            D % 32 == 0 and Hk * D % 64 == 0,
            f"{OP}: {name} has Hk = {Hk} heads of D = {D}, expected D a multiple of 32 and Hk D of 64, "
            "the size of a rotated group",
        )
        check.dtype(OP, torch.float16, **{f"{name[:-1]}_scales": scales})
        check.shape(OP, f"{name[:-1]}_scales", scales, "P, page, Hk, D/32", P, page, Hk, D // 32)
        for what, tensor in ((name, t), (f"{name[:-1]}_scales", scales)):
            check.require(tensor.is_contiguous(), f"{OP}: {what} is not contiguous")
