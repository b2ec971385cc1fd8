"""Meaning of ``embedding``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check


def embedding(ids: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight[ids]`` in ``dtype``."""
    check.dtype("embedding", torch.int64, ids=ids)
    check.floats("embedding", weight=weight)
    check.rank("embedding", "weight", weight, "V, D", 2)
    check.require(
        dtype in check.FLOATS,
        f"embedding: dtype is {dtype}, expected float32, float16 or bfloat16",
    )
    outside = ids.numel() > 0 and bool(((ids < 0) | (ids >= weight.shape[0])).any())
    check.require(not outside, "embedding: an id is outside the table")
    return weight[ids].to(dtype).contiguous()
