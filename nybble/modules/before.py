"""What is done to the input of a linear layer. A quantized product does it on its way in; others ask for it first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nybble import ops
from nybble.ops.gate import gate_mul


@dataclass(frozen=True)
class RmsNorm:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""

    weight: Tensor  # [D], float32 on the CPU
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``[..., D]`` to the same shape and dtype."""
        return ops.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class Gate:
    """``y = act(gate) * up``, where ``x`` holds gate and up side by side."""

    activation: str  # one of nybble.ops.qmatmul.GATES

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``[..., 2 D]`` to ``[..., D]``."""
        return self.of(*x.chunk(2, -1))

    def of(self, gate: Tensor, up: Tensor) -> Tensor:
        """The same of two tensors ``[..., D]``."""
        return gate_mul(gate, up, self.activation)


Before = RmsNorm | Gate
