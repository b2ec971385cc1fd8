"""Meaning of ``quantize_int8``, ``layer_norm_int8`` and ``int8_matmul``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check, norm

LIMIT = 127.0
SMALLEST = 1e-30  # a row below it counts as zeros: 127 / largest must be finite


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """``scale = max|x| / 127``, ``code = round(x / scale)``."""
    check.floats("quantize_int8", x=x)
    check.require(x.dim() >= 1, "quantize_int8: x has shape [], expected [..., D]")
    return _quantize(x.float(), x.float())


def layer_norm_int8(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """``y = layer_norm(x)``; the scale from y in x's dtype, the codes from y in float32."""
    check.floats("layer_norm_int8", x=x)
    y = norm.layer_norm(x.float(), weight, bias, eps)
    return _quantize(y, y.to(x.dtype).float())


def _quantize(x: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[-1] == 0:
        return x.to(torch.int8), x.new_zeros(x.shape[:-1])
    largest = rounded.abs().amax(-1)
    usable = (largest >= SMALLEST) & largest.isfinite()
    scale = torch.where(largest < SMALLEST, 0.0, largest / LIMIT)
    scale = torch.where(largest.isfinite(), scale, torch.nan)
    inverse = torch.where(usable, LIMIT / largest, 0.0)
    steps = (x * inverse[..., None]).masked_fill(~usable[..., None], 0.0)
    return steps.round().clamp(-LIMIT, LIMIT).to(torch.int8).contiguous(), scale.contiguous()


def int8_matmul(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """``(x @ weight^T) * (x_scale * w_scale) + bias``."""
    op = "int8_matmul"
    check.dtype(op, torch.int8, x=x, weight=weight)
    check.dtype(op, torch.float32, x_scale=x_scale, w_scale=w_scale, bias=bias)
    check.require(x.dim() >= 1, f"{op}: x has shape [], expected [..., K]")
    check.rank(op, "weight", weight, "N, K", 2)
    N, K = weight.shape
    check.require(K < 1 << 17, f"{op}: K is {K}, expected less than {1 << 17}")
    check.shape(op, "x", x, "..., K", *x.shape[:-1], K)
    check.shape(op, "x_scale", x_scale, "...", *x.shape[:-1])
    check.shape(op, "w_scale", w_scale, "N", N)
    check.shape(op, "bias", bias, "N", N)
    check.require(
        dtype in check.FLOATS, f"{op}: dtype is {dtype}, expected float32, float16 or bfloat16"
    )
    # Doubles hold these sums exactly, and every device multiplies them.
    sums = (x.double() @ weight.double().t()).float()
    y = sums * (x_scale[..., None] * w_scale)
    return (y if bias is None else y + bias).to(dtype).contiguous()
