"""Meaning of ``rope_``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check


def rope_(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, neox: bool) -> None:
    """``(a, b) -> (a cos - b sin, b cos + a sin)`` over the first ``R`` channels, in place."""
    check.floats("rope_", x=x)
    check.rank("rope_", "x", x, "B, T, H, D", 4)
    check.dtype("rope_", torch.float32, cos=cos, sin=sin)
    check.rank("rope_", "cos", cos, "P, R/2", 2)
    check.shape("rope_", "sin", sin, "P, R/2", *cos.shape)
    check.dtype("rope_", torch.int64, positions=positions)
    check.shape("rope_", "positions", positions, "B, T", *x.shape[:2])
    P, half = cos.shape
    check.require(
        2 * half <= x.shape[-1],
        f"rope_: cos turns R = {2 * half} channels, but x has only D = {x.shape[-1]}",
    )
    check.within("rope_", "positions", positions, 0, P)
    first, second = (
        (slice(0, half), slice(half, 2 * half))
        if neox
        else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    )
    c, s = cos[positions][:, :, None], sin[positions][:, :, None]
    a, b = x[..., first].float(), x[..., second].float()
    # Both before either is stored: for float32, a and b are views of x.
    turned = a * c - b * s, b * c + a * s
    x[..., first], x[..., second] = turned[0].to(x.dtype), turned[1].to(x.dtype)
