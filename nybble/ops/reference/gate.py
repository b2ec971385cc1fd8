"""Meaning of ``silu_mul`` and ``gelu_mul``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nybble.ops.reference import check


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``gate / (1 + exp(-gate)) * up``."""
    _check("silu_mul", gate, up)
    return (F.silu(gate.float()) * up.float()).to(gate.dtype).contiguous()


def gelu_mul(gate: Tensor, up: Tensor, tanh: bool) -> Tensor:
    """``gelu(gate) * up``, exact (erf) or the tanh form."""
    _check("gelu_mul", gate, up)
    act = F.gelu(gate.float(), approximate="tanh" if tanh else "none")
    return (act * up.float()).to(gate.dtype).contiguous()


def _check(op: str, gate: Tensor, up: Tensor) -> None:
    check.floats(op, gate=gate)
    check.dtype(op, gate.dtype, up=up)
    check.require(gate.dim() >= 1, f"{op}: gate has shape [], expected [..., D]")
    check.require(
        gate.shape == up.shape,
        f"{op}: gate and up have different shapes {list(gate.shape)} and {list(up.shape)}; expected the same",
    )
