"""Meaning of ``rms_norm``, ``layer_norm`` and their forms in place."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight``."""
    _check("rms_norm", x, weight, None, eps, dtype)
    return _rms(x, weight, eps).to(dtype or x.dtype).contiguous()


def rms_norm_(x: Tensor, weight: Tensor, eps: float) -> None:
    """``rms_norm`` in place."""
    _check("rms_norm_", x, weight, None, eps)
    x.copy_(_rms(x, weight, eps))


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias``, with the biased variance."""
    _check("layer_norm", x, weight, bias, eps, dtype)
    return _layer(x, weight, bias, eps).to(dtype or x.dtype).contiguous()


def layer_norm_(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    """``layer_norm`` in place."""
    _check("layer_norm_", x, weight, bias, eps)
    x.copy_(_layer(x, weight, bias, eps))


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return wide * scale * weight.float()


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = centred * scale * weight.float()
    return y if bias is None else y + bias.float()


def _check(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None = None,
) -> None:
    check.floats(op, x=x, weight=weight)
    letters = "H, D" if weight.dim() == 2 else "D"
    dims = len(letters.split(","))
    check.require(x.dim() >= dims, f"{op}: x has shape {list(x.shape)}, expected [..., {letters}]")
    check.shape(op, "weight", weight, letters, *x.shape[-dims:])
    check.dtype(op, weight.dtype, bias=bias)
    check.shape(op, "bias", bias, letters, *x.shape[-dims:])
    check.require(eps >= 0, f"{op}: eps is {eps}, expected 0 or more")
    check.require(
        dtype is None or dtype in check.FLOATS,
        f"{op}: dtype is {dtype}, expected float32, float16 or bfloat16",
    )
