"""The steps of ``sample_chain``.

>>> Xtc(0.5, threshold=0.1)
Xtc(chance=0.5, threshold=0.1)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

from torch import Tensor

# One number for every row, or float32 [B] with one for each.
PerRow: TypeAlias = float | Tensor


@dataclass(frozen=True)
class Step:
    """A step of :func:`nybble.ops.sample_chain`: drops candidates, or changes their probabilities or their order.

    No value is negative or NaN. Where a step drops candidates, the probabilities of those that stay
    are divided by their sum. "Sorts": descending by probability, then by id, what is below 1e-8 behind
    the others and as it was.
    """

    number: ClassVar[int]  # SampleStep in csrc/ops/sample.h

    def values(self) -> list[PerRow]:
        """The step's values in the order of its fields."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class TopK(Step):
    """The ``k`` most probable, sorted; 0: off. Of those as probable as the last of them stay the highest
    ids among the first ``k`` candidates that are at least as probable."""

    number = 0
    k: PerRow


@dataclass(frozen=True)
class TopP(Step):
    """Sorts; the shortest prefix whose mass reaches ``p``. 1 or more: off."""

    number = 1
    p: PerRow


@dataclass(frozen=True)
class TopPStream(Step):
    """Candidates enter a heap in their order, without those below 1e-6; while its mass is over ``p`` and it
    holds more than one, the least probable leaves. Sorted. 1 or more: off.

    ExLlamaV2's top-p. It keeps less than ``p``, and not always the most probable: a small candidate that
    comes late may take the room that a larger one left.
    """

    number = 2
    p: PerRow


@dataclass(frozen=True)
class MinP(Step):
    """``probability >= p * largest``; a hole is filled with the last candidate that stays. 0: off."""

    number = 3
    p: PerRow


@dataclass(frozen=True)
class TopA(Step):
    """``probability >= a * largest**2``, at least the largest; holes as in :class:`MinP`. 0: off."""

    number = 4
    a: PerRow


@dataclass(frozen=True)
class TailFree(Step):
    """Sorts; with ``d[i] = |p[i] - 2 p[i + 1] + p[i + 2]|`` over what is not below 1e-8, keeps one more than
    the ``d`` whose running sum is at most ``z * d.sum()``. 1 or more, or under three candidates: off."""

    number = 5
    z: PerRow


@dataclass(frozen=True)
class Typical(Step):
    """Ascending by ``|-ln probability - entropy|``, then descending by id; the shortest prefix whose mass
    reaches ``p``. 1 or more: off."""

    number = 6
    p: PerRow


@dataclass(frozen=True)
class TypicalBelow(Step):
    """With ``y = probability + ln(probability + 1e-10)``: ascending by ``|y - mean of y|``, then descending
    by id; candidates while the mass stays below ``p``, at least one. 1 or more: off.

    ExLlamaV2's typical sampling.
    """

    number = 7
    p: PerRow


@dataclass(frozen=True)
class Surprise(Step):
    """Sorts; ``-log2 probability <= bits``, at least the largest. inf: off.

    The truncation of Mirostat 2: after each token its caller moves ``bits`` by
    ``eta * (tau + log2 probability)``.
    """

    number = 8
    bits: PerRow


@dataclass(frozen=True)
class Temper(Step):
    """``probability ** (1 / t)``, divided by their sum. 0: the largest share it all; 1: off."""

    number = 9
    t: PerRow


@dataclass(frozen=True)
class DynamicTemper(Step):
    """:class:`Temper` with ``t = low + (high - low) * (H / ln n) ** exponent``, ``H`` the entropy of the
    ``n`` candidates."""

    number = 10
    low: PerRow
    high: PerRow
    exponent: PerRow = 1.0


@dataclass(frozen=True)
class Xtc(Step):
    """ "Exclude top choices", in expectation instead of by dice. Of the removable candidates with
    ``probability >= threshold`` all but the least probable lose the share ``chance``; what they lose goes
    to the others in proportion. ``chance`` 0: off."""

    number = 11
    chance: PerRow
    threshold: PerRow


@dataclass(frozen=True)
class Sort(Step):
    """Sorts."""

    number = 12
