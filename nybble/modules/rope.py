"""Rotary position embedding: frequencies of each kind of scaling, and the table of cosines and
sines a model shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeSpec:
    """How channel pair ``i`` of ``dim / 2`` turns with the position: by ``frequencies()[i]`` a
    token."""

    dim: int  # channels that turn, even
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max: int = 0  # context before scaling (llama3, yarn)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whole channels at the ends of the ramp
    attention_factor: float = 1.0  # yarn: multiplies cos and sin

    def frequencies(self) -> Tensor:
        """float32 ``[dim / 2]``, radians a token.

        default: ``f[i] = theta^(-2i / dim)``; linear: ``f / factor``; llama3 and yarn divide the
            slow channels by
        ``factor``, keep the fast ones and blend between.

        >>> RopeSpec(dim=4, theta=100.0, kind="linear", factor=2.0).frequencies()
        tensor([0.5000, 0.0500])
        """
        plain = 1.0 / self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        if self.kind == "default":
            return plain
        slow = plain / self.factor
        if self.kind == "linear":
            return slow
        keep = self._llama3_keep(plain) if self.kind == "llama3" else self._yarn_keep()
        return slow * (1 - keep) + plain * keep

    def _llama3_keep(self, plain: Tensor) -> Tensor:
        """1 where a channel turns ``high_freq_factor`` times or more within the original context, 0
        below ``low``."""
        turns = self.original_max * plain / (2 * math.pi)
        return (
            (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ).clamp(0, 1)

    def _yarn_keep(self) -> Tensor:
        """1 where a channel turns ``beta_fast`` times in the original context, 0 for ``beta_slow``,
        linear between."""

        def channel(turns: float) -> float:
            return (
                self.dim
                * math.log(self.original_max / (turns * 2 * math.pi))
                / (2 * math.log(self.theta))
            )

        low, high = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        if low == high:
            high += 0.001  # a step, without dividing by zero
        ramp = (torch.arange(self.dim // 2, dtype=torch.float32) - low) / (high - low)
        return 1 - ramp.clamp(0, 1)


def yarn_attention_factor(
    factor: float, mscale: float | None, mscale_all_dim: float | None
) -> float:
    """Yarn's scale of cos and sin, ``0.1 m ln(factor) + 1``, or the quotient of two where both are
    given."""

    def scale(m: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


class RopeTable:
    """Cosines and sines by position. Grows by doubling, so that a long context costs memory only
    when it is used."""

    def __init__(self, spec: RopeSpec, max_positions: int, device: torch.device) -> None:
        self.max_positions = max_positions
        self.device = device
        self._frequencies = spec.frequencies()
        self._scale = spec.attention_factor
        self._size = 0
        self._tables = self._compute(min(max_positions, 512))

    def _compute(self, size: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(size, dtype=torch.float32)[:, None] * self._frequencies
        self._size = size
        return (angles.cos() * self._scale).to(self.device), (angles.sin() * self._scale).to(
            self.device
        )

    def upto(self, positions: int) -> tuple[Tensor, Tensor]:
        """``cos``, ``sin`` float32 ``[P, R/2]`` with ``P >= positions``; ``positions`` is at most
        ``max_positions``."""
        if positions > self._size:
            self._tables = self._compute(min(self.max_positions, 1 << (positions - 1).bit_length()))
        return self._tables
