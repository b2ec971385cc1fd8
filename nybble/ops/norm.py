"""``rms_norm``, ``layer_norm`` and their forms in place."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_rms_norm = torch.ops.nybble.rms_norm.default
_layer_norm = torch.ops.nybble.layer_norm.default
_rms_norm_in_place = torch.ops.nybble.rms_norm_.default
_layer_norm_in_place = torch.ops.nybble.layer_norm_.default


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, computed in float32.

    Args:
        x: ``[..., D]`` float32, float16 or bfloat16, any strides.
        weight: ``[D]`` of any of these types, contiguous; or ``[H, D]``, a row for each head of x ``[..., H, D]``.
        eps: 0 or more.
        dtype: of y, one of these types; None: x's.

    Returns ``[..., D]``, contiguous. Raises ``RuntimeError`` naming what does not fit.

    >>> rms_norm(torch.tensor([[3.0, -3.0]]), torch.ones(2), 0.0)
    tensor([[ 1., -1.]])
    """
    ensure_loaded()
    y: Tensor = _rms_norm(x, weight, eps, dtype)
    return y


def rms_norm_(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, in place, computed in float32.

    Args: as :func:`rms_norm`; ``x`` is changed.

    Returns ``x``. Raises ``RuntimeError`` naming what does not fit.

    >>> rms_norm_(torch.tensor([[3.0, -3.0], [5.0, 5.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]]), 0.0)
    tensor([[ 1., -1.],
            [ 2.,  0.]])
    """
    ensure_loaded()
    _rms_norm_in_place(x, weight, eps)
    return x


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension, computed in float32.

    Args:
        x: ``[..., D]`` float32, float16 or bfloat16, any strides.
        weight: ``[D]`` of any of these types, contiguous; or ``[H, D]``, a row for each head of x ``[..., H, D]``.
        bias: like weight, in its dtype, or None.
        eps: 0 or more.
        dtype: of y, one of these types; None: x's.

    Returns ``[..., D]``, contiguous. Raises ``RuntimeError`` naming what does not fit.

    >>> layer_norm(torch.tensor([[1.0, 3.0]]), torch.ones(2), None, 0.0)
    tensor([[-1.,  1.]])
    """
    ensure_loaded()
    y: Tensor = _layer_norm(x, weight, bias, eps, dtype)
    return y


def layer_norm_(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """``x = (x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension, in place, computed in float32.

    Args: as :func:`layer_norm`; ``x`` is changed.

    Returns ``x``. Raises ``RuntimeError`` naming what does not fit.

    >>> layer_norm_(torch.tensor([[1.0, 3.0]]), torch.ones(2), torch.ones(2), 0.0)
    tensor([[0., 2.]])
    """
    ensure_loaded()
    _layer_norm_in_place(x, weight, bias, eps)
    return x


@register_fake("nybble::rms_norm")
def _(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype or x.dtype)


@register_fake("nybble::rms_norm_")
def _(x: Tensor, weight: Tensor, eps: float) -> None:
    return None


@register_fake("nybble::layer_norm")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype or x.dtype)


@register_fake("nybble::layer_norm_")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    return None
