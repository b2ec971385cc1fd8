"""Paged caches: which tokens of which pages, pages that change places, and how much of a prompt is cached already.

Plain functions over torch: they move whole pages or a few integers, and torch does that as fast as a kernel would.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def paged_runs(
    block_table: Tensor, begin: Tensor, end: Tensor, *, page_size: int, align: int = 1
) -> Tensor:
    """Where tokens ``begin[b]`` to ``end[b] - 1`` of each sequence lie in a cache ``[pages, page_size, ...]``.

    Token ``t`` of sequence ``b`` is token ``t % page_size`` of page ``block_table[b, t // page_size]``.

    Args:
        block_table: int32 or int64 ``[B, P]``; entries that no token needs may be anything.
        begin, end: integers ``[B]``; where ``begin >= end`` the sequence has no tokens here.
        page_size: tokens a page.
        align: each run is widened to multiples of ``align`` within its page.

    Returns int64 ``[n, 2]``: first token and the one after the last, counted through all pages. Raises ``RuntimeError``.

    >>> paged_runs(torch.tensor([[7, 2]]), torch.tensor([3]), torch.tensor([6]), page_size=4)
    tensor([[31, 32],
            [ 8, 10]])
    """
    if block_table.dim() != 2 or begin.shape != end.shape or begin.shape != block_table.shape[:1]:
        raise RuntimeError(
            f"paged_runs: block_table has shape {list(block_table.shape)}, begin {list(begin.shape)}, end "
            f"{list(end.shape)}, expected [B, P], [B], [B]"
        )
    if any(t.dtype not in (torch.int32, torch.int64) for t in (block_table, begin, end)):
        raise RuntimeError("paged_runs: expected int32 or int64 tensors")
    if page_size < 1 or align < 1:
        raise RuntimeError(
            f"paged_runs: page_size is {page_size}, align is {align}, expected 1 or more"
        )
    begin, end = begin.long()[:, None], end.long()[:, None]
    room = block_table.shape[1] * page_size
    wanted = begin < end
    if bool((wanted & ((begin < 0) | (end > room))).any()):
        raise RuntimeError(f"paged_runs: expected tokens of 0 to {room}, the room in block_table")
    slot = torch.arange(0, room, page_size, device=block_table.device)
    first = ((begin - slot) // align * align).clamp(min=0)
    last = (-(-(end - slot) // align) * align).clamp(max=page_size)
    page = block_table.long() * page_size
    return torch.stack([page + first, page + last], -1)[wanted & (first < last)]


def rotate_pages_(pages: Tensor, order: Tensor) -> Tensor:
    """``pages[order[i]] = pages[order[i + 1]]`` for each i, and the last gets what the first had; in place.

    Args:
        pages: ``[P, ...]`` of any dtype, any strides; changed in place.
        order: int32 or int64 ``[n]``, page numbers.

    Returns ``pages``. Raises ``RuntimeError`` naming what does not fit.

    >>> rotate_pages_(torch.tensor([[10], [11], [12]]), torch.tensor([0, 2])).flatten()
    tensor([12, 11, 10])
    """
    if pages.dim() < 1 or order.dim() != 1 or order.dtype not in (torch.int32, torch.int64):
        raise RuntimeError(
            f"rotate_pages_: pages has shape {list(pages.shape)}, order is {order.dtype} {list(order.shape)}, expected "
            "[P, ...] and int32 or int64 [n]"
        )
    at = order.tolist()
    if at and not 0 <= min(at) <= max(at) < pages.shape[0]:
        raise RuntimeError(
            f"rotate_pages_: order has values {min(at)} to {max(at)}, expected 0 to {pages.shape[0] - 1}"
        )
    if len(at) > 1:
        kept = pages[at[0]].clone()
        for to, source in itertools.pairwise(at):
            pages[to].copy_(pages[source])
        pages[at[-1]].copy_(kept)
    return pages


def common_prefix(a: Tensor, b: Tensor) -> int:
    """How many elements ``a`` and ``b`` share from the start.

    Args:
        a, b: ``[n]`` and ``[m]`` of one dtype.

    Raises ``RuntimeError`` naming what does not fit.

    >>> common_prefix(torch.tensor([5, 6, 7]), torch.tensor([5, 6, 8, 9]))
    2
    """
    if a.dim() != 1 or b.dim() != 1 or a.dtype != b.dtype:
        raise RuntimeError(
            f"common_prefix: a is {a.dtype} {list(a.shape)}, b {b.dtype} {list(b.shape)}, expected [n], [m] of one dtype"
        )
    n = min(a.numel(), b.numel())
    differs = (a[:n] != b[:n]).nonzero()
    return int(differs[0]) if differs.numel() else n
