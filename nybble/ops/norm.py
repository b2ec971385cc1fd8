"""``rms_norm`` and ``layer_norm``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops import _schema  # noqa: F401  (defines the ops)
from nybble.ops._native import ensure_loaded

_rms_norm = torch.ops.nybble.rms_norm.default
_layer_norm = torch.ops.nybble.layer_norm.default


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, computed in float32.

    Args:
        x: ``[..., D]`` float32, float16 or bfloat16, any strides.
        weight: ``[D]`` of any of these types, contiguous.
        eps: 0 or more.

    Returns ``[..., D]`` in x's dtype. Raises ``RuntimeError`` naming what does not fit.

    >>> rms_norm(torch.tensor([[3.0, -3.0]]), torch.ones(2), 0.0)
    tensor([[ 1., -1.]])
    """
    ensure_loaded()
    y: Tensor = _rms_norm(x, weight, eps)
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension, computed in float32.

    Args:
        x: ``[..., D]`` float32, float16 or bfloat16, any strides.
        weight: ``[D]`` of any of these types, contiguous.
        bias: ``[D]`` in weight's dtype, or None.
        eps: 0 or more.

    Returns ``[..., D]`` in x's dtype. Raises ``RuntimeError`` naming what does not fit.

    >>> layer_norm(torch.tensor([[1.0, 3.0]]), torch.ones(2), None, 0.0)
    tensor([[-1.,  1.]])
    """
    ensure_loaded()
    y: Tensor = _layer_norm(x, weight, bias, eps)
    return y


@torch.library.register_fake("nybble::rms_norm")
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("nybble::layer_norm")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return x.new_empty(x.shape)
