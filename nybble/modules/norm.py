"""Normalisation over the last dimension."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nybble import ops


@dataclass(frozen=True)
class RmsNorm:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""

    weight: Tensor  # [D], float32 on the CPU
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``[..., D]`` to the same shape and dtype."""
        return ops.rms_norm(x, self.weight, self.eps)
