"""Meaning of ``rms_norm`` and ``layer_norm``."""

from __future__ import annotations

from torch import Tensor

from nybble.ops.reference import check


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight``."""
    _check("rms_norm", x, weight, None, eps)
    wide = x.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * scale * weight.float()).to(x.dtype).contiguous()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias``, with the biased variance."""
    _check("layer_norm", x, weight, bias, eps)
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = centred * scale * weight.float()
    return (y if bias is None else y + bias.float()).to(x.dtype).contiguous()


def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    check.floats(op, x=x, weight=weight)
    check.require(x.dim() >= 1, f"{op}: x has shape [], expected [..., D]")
    check.shape(op, "weight", weight, "D", x.shape[-1])
    check.dtype(op, weight.dtype, bias=bias)
    check.shape(op, "bias", bias, "D", x.shape[-1])
    check.require(eps >= 0, f"{op}: eps is {eps}, expected 0 or more")
