"""The gated feed-forward layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nybble import ops
from nybble.modules.linear import Linear

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class Mlp:
    """``y = down(act(gate(x)) * up(x))``, gate and up as one product where their weights allow
    it."""

    gate_up: Linear
    down: Linear
    activation: str  # one of ACTIVATIONS

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``[B, T, hidden]`` to the same shape."""
        gate, up = self.gate_up.parts(x)
        if self.activation == "silu":
            return self.down(ops.silu_mul(gate, up))
        return self.down(ops.gelu_mul(gate, up, tanh=self.activation == "gelu_tanh"))
