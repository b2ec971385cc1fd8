"""The gated feed-forward layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nybble.modules.before import Gate, RmsNorm
from nybble.modules.linear import Linear


@dataclass(frozen=True)
class Mlp:
    """``y = down(act(gate(h)) * up(h))``, ``h = norm(x)``, gate and up as one product where their weights allow it."""

    norm: RmsNorm
    gate_up: Linear
    down: Linear
    gate: Gate

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        """``x`` ``[B, T, hidden]`` to ``y + add`` of the same shape."""
        if self.gate_up.is_one_product:
            return self.down(self.gate_up(x, self.norm), self.gate, add)
        return self.down(self.gate.of(*self.gate_up.parts(x, self.norm)), None, add)
