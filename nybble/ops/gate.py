"""``silu_mul`` and ``gelu_mul``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_silu_mul = torch.ops.nybble.silu_mul.default
_gelu_mul = torch.ops.nybble.gelu_mul.default


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``y = gate / (1 + exp(-gate)) * up``, computed in float32.

    Args:
        gate, up: ``[..., D]``, the same shape and dtype (float32, float16 or bfloat16), any strides.

    Returns ``[..., D]``, contiguous. Raises ``RuntimeError`` naming what does not fit.

    >>> silu_mul(torch.zeros(2), torch.ones(2))
    tensor([0., 0.])
    """
    ensure_loaded()
    y: Tensor = _silu_mul(gate, up)
    return y


def gelu_mul(gate: Tensor, up: Tensor, *, tanh: bool) -> Tensor:
    """``y = gelu(gate) * up``: ``gelu(a) = a (1 + erf(a / sqrt 2)) / 2``, or its tanh form.

    Args:
        gate, up: ``[..., D]``, the same shape and dtype (float32, float16 or bfloat16), any strides.
        tanh: use ``a (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))) / 2`` instead.

    Returns ``[..., D]``, contiguous. Raises ``RuntimeError`` naming what does not fit.

    >>> gelu_mul(torch.zeros(2), torch.ones(2), tanh=False)
    tensor([0., 0.])
    """
    ensure_loaded()
    y: Tensor = _gelu_mul(gate, up, tanh)
    return y


def gate_mul(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """:func:`silu_mul` or :func:`gelu_mul`, by the name of the activation: silu, gelu or gelu_tanh.

    >>> gate_mul(torch.zeros(2), torch.ones(2), "gelu_tanh")
    tensor([0., 0.])
    """
    if activation == "silu":
        return silu_mul(gate, up)
    return gelu_mul(gate, up, tanh=activation == "gelu_tanh")


@register_fake("nybble::silu_mul")
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@register_fake("nybble::gelu_mul")
def _(gate: Tensor, up: Tensor, tanh: bool) -> Tensor:
    return gate.new_empty(gate.shape)
