"""Collectives over shards: tensors of one process, each shard's on a device of its own or all on one.

A list has one tensor a shard. A layer split by output columns needs the whole input on every shard (``broadcast_``) and gives
pieces side by side (``gather_columns_``); one split by input rows gives terms of a sum (``all_reduce_``).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def broadcast_(targets: Sequence[Tensor], x: Tensor) -> None:
    """Every target becomes ``x``; one that is ``x``'s own memory is left alone.

    Args:
        targets: of x's shape, on any devices; changed in place.
        x: any shape and dtype.

    Raises ``RuntimeError`` naming what does not fit.

    >>> import torch
    >>> shards = [torch.zeros(2), torch.zeros(2)]
    >>> broadcast_(shards, torch.ones(2))
    >>> shards[1]
    tensor([1., 1.])
    """
    _same("broadcast_: targets", targets, x)
    for target in targets:
        if target.data_ptr() != x.data_ptr() or target.device != x.device:
            target.copy_(x)


def gather_columns_(out: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """``out = [parts[0] | parts[1] | ...]`` side by side along the last dimension.

    Args:
        out: ``[..., N]``, changed in place.
        parts: ``[..., N_i]`` in out's dtype, on any devices; the widths add up to N.

    Returns ``out``. Raises ``RuntimeError`` naming what does not fit.

    >>> import torch
    >>> gather_columns_(torch.zeros(1, 3), [torch.ones(1, 1), torch.full((1, 2), 2.0)])
    tensor([[1., 2., 2.]])
    """
    widths = [part.shape[-1] if part.dim() else -1 for part in parts]
    if out.dim() == 0 or sum(widths) != out.shape[-1]:
        raise RuntimeError(
            f"gather_columns_: parts have widths {widths}, expected them to add up to N from out {list(out.shape)}"
        )
    for part, place in zip(parts, out.split(widths, -1), strict=True):
        _same("gather_columns_: parts", [part], place)
        place.copy_(part)
    return out


def all_reduce_(tensors: Sequence[Tensor]) -> None:
    """Every tensor becomes the sum of all, added in the order of the list and rounded to their dtype after each.

    Args:
        tensors: one shape and dtype, on any devices, no two sharing memory; changed in place.

    Raises ``RuntimeError`` naming what does not fit.

    >>> import torch
    >>> shards = [torch.ones(1), torch.full((1,), 2.0), torch.full((1,), 4.0)]
    >>> all_reduce_(shards)
    >>> shards
    [tensor([7.]), tensor([7.]), tensor([7.])]
    """
    if not tensors:
        return
    total = tensors[0]
    _same("all_reduce_: tensors", tensors, total)
    for one in tensors[1:]:
        total.add_(one.to(total.device))
    broadcast_(tensors[1:], total)


def _same(what: str, tensors: Sequence[Tensor], x: Tensor) -> None:
    for i, t in enumerate(tensors):
        if t.shape != x.shape or t.dtype != x.dtype:
            raise RuntimeError(
                f"{what}[{i}] is {t.dtype} {list(t.shape)}, expected {x.dtype} {list(x.shape)}"
            )
