"""Positions of text and images for models that rotate by frame, row and column (Qwen2-VL's M-RoPE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VisionSpan:
    """The token ids that stand for one image or video: ``begin`` to ``end - 1``, a patch each after merging.

    They run through its columns first, then its rows, then its frames.
    """

    begin: int
    end: int
    frames: int
    rows: int  # in patches, before merging
    columns: int  # in patches, before merging


def mrope_positions(
    ids: Tensor, spans: Sequence[VisionSpan], *, merge: int, length: int
) -> tuple[Tensor, int]:
    """Frame, row and column of each token.

    ``k = id - begin`` in an image whose tokens start at position ``p``: ``(p + k // columns // rows % frames,
    p + k // columns % rows, p + k % columns)``, rows and columns counted after merging. Text has the same position three
    times, one after the other; after an image it goes on behind the largest position there. Tokens of images with no text
    between them start at the same ``p``.

    Args:
        ids: int64 ``[T]``.
        spans: where they overlap, the first holds.
        merge: ``merge`` x ``merge`` patches became one token.
        length: positions wanted; beyond ``T`` they are those of text.

    Returns int64 ``[3, length]`` and the position after the last. Raises ``RuntimeError`` naming what does not fit.

    >>> mrope_positions(torch.tensor([7, 100, 101, 7]), [VisionSpan(100, 102, 1, 2, 4)], merge=2, length=4)
    (tensor([[0, 1, 1, 3],
            [0, 1, 1, 3],
            [0, 1, 2, 3]]), 4)
    """
    if ids.dim() != 1 or ids.dtype != torch.int64:
        raise RuntimeError(
            f"mrope_positions: ids is {ids.dtype} {list(ids.shape)}, expected int64 [T]"
        )
    if merge < 1 or length < 0:
        raise RuntimeError(
            f"mrope_positions: merge is {merge}, expected 1 or more; length is {length}, expected 0 or more"
        )
    ids = ids[:length]
    offsets = ids.new_zeros(3, length)
    vision = torch.zeros(length, dtype=torch.bool, device=ids.device)
    for span in reversed(spans):
        rows, columns = span.rows // merge, span.columns // merge
        (at,) = ((ids >= span.begin) & (ids < span.end)).nonzero(as_tuple=True)
        if at.numel() == 0:
            continue
        if min(span.frames, rows, columns) < 1:
            raise RuntimeError(f"mrope_positions: {span} has no token after merging by {merge}")
        k = ids[at] - span.begin
        offsets[:, at] = torch.stack(
            [k // columns // rows % span.frames, k // columns % rows, k % columns]
        )
        vision[at] = True
    # Each text token is a stretch of its own, each run of vision tokens one; a stretch moves the next on by its extent.
    first = torch.ones_like(vision)
    first[1:] = ~(vision[1:] & vision[:-1])
    stretch = first.cumsum(0) - 1
    extent = ids.new_zeros(int(first.sum()))
    extent.scatter_reduce_(0, stretch, offsets.amax(0) + 1, "amax")
    base = extent.cumsum(0) - extent
    return offsets + base[stretch], int(extent.sum())
