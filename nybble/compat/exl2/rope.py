"""``rope_`` and ``gen_mrope_pos_ids``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args


def rope_(
    x: Any,
    sin: Any,
    cos: Any,
    past_len: Any,
    num_heads: Any,
    head_dim: Any,
    offsets: Any,
    neox_style: Any,
) -> None:
    """Rotate half ``x``, ``[batch, tokens, num_heads, head_dim]`` in any grouping, in place.

    ``sin`` and ``cos`` hold a row of R halves a position, each angle twice: as two equal halves (``neox_style``) or in
    pairs. Token t of sequence b stands at ``max(past_len + offsets[b] + t, 0)``, without ``offsets`` at ``past_len + t``,
    and with ``past_len`` -1 at ``max(offsets[b], 0) + t``.
    """
    x, sin, cos = (
        _args.contiguous(name, _args.dtype(name, value, "kHalf"))
        for name, value in (("x", x), ("sin", sin), ("cos", cos))
    )
    if min(x.dim(), sin.dim(), cos.dim()) < 1 or sin.shape != cos.shape:
        raise RuntimeError("sin table does not match cos table")
    heads = _args.integer("num_heads", num_heads)
    width = _args.integer("head_dim", head_dim)
    neox = _args.boolean("neox_style", neox_style)
    batch, token = x.shape[0], heads * width
    if heads < 1 or width < 1 or x.numel() % max(batch * token, 1) != 0:
        raise RuntimeError(
            f"x has shape {list(x.shape)}, expected whole tokens of {heads} heads of {width}"
        )
    rotary = sin.shape[-1]
    if rotary % 2 != 0 or rotary > width:
        raise RuntimeError(
            f"the tables have {rotary} columns, expected an even number up to {width}"
        )
    if x.numel() == 0 or rotary == 0:
        return
    parts = x.view(batch, -1, heads, width)
    at = _positions(past_len, offsets, batch, parts.shape[1], x.device)
    columns = slice(0, rotary // 2) if neox else slice(0, rotary, 2)
    places = torch.arange(at.numel(), device=x.device).view(at.shape)
    ops.rope_(parts, _rows(cos, at, columns), _rows(sin, at, columns), places, neox=neox)


def _positions(
    past_len: Any, offsets: Any, batch: int, tokens: int, device: torch.device
) -> Tensor:
    """int64 ``[batch, tokens]``."""
    past = _args.integer("past_len", past_len)
    given = _args.optional("offsets", offsets)
    if not -1 <= past < 1 << 31 or (past == -1 and given is None):
        raise RuntimeError(
            f"past_len is {past}, expected 0 or more, or -1 where offsets say it all"
        )
    base = torch.full((batch, 1), past, device=device)
    if given is not None:
        _args.contiguous("offsets", _args.dtype("offsets", given, "kInt"))
        if given.numel() != batch:
            raise RuntimeError("offsets and x have incompatible shapes")
        lengths = given.view(batch, 1).long()
        base = lengths.clamp(min=0) if past == -1 else base + lengths
    return (base + torch.arange(tokens, device=device)).clamp(min=0)


def _rows(table: Tensor, at: Tensor, columns: slice) -> Tensor:
    """float32 ``[at.numel(), R/2]``: only the rows in use, as a table is many times longer than a step."""
    rows, last = table.view(-1, table.shape[-1]), int(at.max())
    if last >= rows.shape[0]:
        raise RuntimeError(f"position {last} is beyond the table's {rows.shape[0]} rows")
    return rows[at.flatten()][:, columns].float().contiguous()


def gen_mrope_pos_ids(mrope_pos_ids: Any, ids: Any, merge_size: Any, spans: Any, grids: Any) -> int:
    """Fill int64 ``mrope_pos_ids`` ``[3, L]`` with frame, row and column of each token; the position after the last.

    ``spans`` are (first, end) id ranges, ``grids`` their (frames, rows, columns) in patches.
    """
    out = _args.contiguous("mrope_pos_ids", _args.dtype("mrope_pos_ids", mrope_pos_ids, "kLong"))
    ids = _args.contiguous("ids", _args.dtype("ids", ids, "kLong"))
    if out.dim() != 2 or out.shape[0] != 3 or ids.dim() != 1:
        raise RuntimeError("mrope_pos_ids and ids have incompatible shapes")
    ranges, sizes = _numbers("spans", spans, 2), _numbers("grids", grids, 3)
    if len(ranges) != len(sizes):
        raise RuntimeError(f"there are {len(ranges)} spans, but {len(sizes)} grids")
    positions, after = ops.mrope_positions(
        ids,
        [ops.VisionSpan(*r, *s) for r, s in zip(ranges, sizes, strict=True)],
        merge=_args.integer("merge_size", merge_size),
        length=out.shape[1],
    )
    out.copy_(positions)
    return after


def _numbers(name: str, value: Any, count: int) -> list[list[int]]:
    """A sequence of ``count``-tuples of int."""
    if not isinstance(value, Sequence) or not all(
        isinstance(entry, Sequence) and len(entry) == count for entry in value
    ):
        raise TypeError(f"{name} is no sequence of {count} ints each")
    return [[_args.integer(name, v) for v in entry] for entry in value]
