"""8-bit activations and weights: ``quantize_int8``, ``layer_norm_int8`` and ``int8_matmul``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_quantize_int8 = torch.ops.nybble.quantize_int8.default
_layer_norm_int8 = torch.ops.nybble.layer_norm_int8.default
_int8_matmul = torch.ops.nybble.int8_matmul.default


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """``scale = max|x| / 127``, ``code = round(x / scale)`` for each row: symmetric, ties to even.

    Args:
        x: ``[..., D]`` float32, float16 or bfloat16, any strides.

    Returns codes int8 ``[..., D]`` of -127 to 127 and scales float32 ``[...]``. A row whose largest number is below 1e-30
    gives scale 0; one with an infinity or a NaN gives scale NaN, so that a product with it is not mistaken for numbers; both
    have codes 0. Raises ``RuntimeError`` naming what does not fit.

    >>> quantize_int8(torch.tensor([[127.0, -2.5]]))
    (tensor([[127,  -2]], dtype=torch.int8), tensor([1.]))
    """
    ensure_loaded()
    pair: tuple[Tensor, Tensor] = _quantize_int8(x)
    return pair


def layer_norm_int8(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """``y = layer_norm(x, weight, bias, eps)``, ``scale = max|y| / 127`` of each row, ``code = round(y / scale)``.

    The scale comes from y as :func:`layer_norm` returns it, rounded to x's dtype; the codes from y before that rounding.

    Args:
        x: ``[..., D]`` float32, float16 or bfloat16, any strides.
        weight: ``[D]`` of any of these types, contiguous.
        bias: ``[D]`` in weight's dtype, or None.
        eps: 0 or more.

    Returns codes int8 ``[..., D]`` and scales float32 ``[...]``, with the special rows of :func:`quantize_int8`. Raises
    ``RuntimeError`` naming what does not fit.

    >>> layer_norm_int8(torch.tensor([[1.0, 3.0]]), torch.ones(2), None, 0.0)[0]
    tensor([[-127,  127]], dtype=torch.int8)
    """
    ensure_loaded()
    pair: tuple[Tensor, Tensor] = _layer_norm_int8(x, weight, bias, eps)
    return pair


def int8_matmul(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``y[m, n] = (sum_k x[m, k] weight[n, k]) * (x_scale[m] * w_scale[n]) + bias[n]``; the sum is exact.

    Args:
        x: int8 ``[..., K]``, any strides, K below 131072.
        x_scale: float32 ``[...]``, one a row of x, contiguous.
        weight: int8 ``[N, K]``, contiguous.
        w_scale: float32 ``[N]``, contiguous.
        bias: float32 ``[N]``, contiguous, or None.
        dtype: of the result: float32, float16 or bfloat16.

    Returns ``[..., N]``. Raises ``RuntimeError`` naming what does not fit.

    >>> ones = torch.ones(1, 3, dtype=torch.int8)
    >>> int8_matmul(ones, torch.tensor([0.5]), ones, torch.tensor([2.0]))
    tensor([[3.]])
    """
    ensure_loaded()
    y: Tensor = _int8_matmul(x, x_scale, weight, w_scale, bias, dtype)
    return y


def _codes_and_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    codes = x.new_empty(x.shape, dtype=torch.int8)
    return codes, x.new_empty(x.shape[:-1], dtype=torch.float32)


@register_fake("nybble::quantize_int8")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _codes_and_scales(x)


@register_fake("nybble::layer_norm_int8")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return _codes_and_scales(x)


@register_fake("nybble::int8_matmul")
def _(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)
