"""What layers ask of a cache, and what one forward pass hands to every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class KVStore(Protocol):
    """Keys and values of ``B`` sequences in every layer.

    One step is: ``append`` once in each layer, all with the same ``T``, then ``advance(T)``.
    Lengths change in
    ``advance``, ``truncate`` and ``copy_row`` only, so a step that failed half way may simply be
    run again.
    """

    @property
    def lengths(self) -> Tensor:
        """int64 ``[B]`` on the CPU: tokens held of each sequence. Read only; changes as the cache
        does."""

    @property
    def capacity(self) -> int:
        """Tokens that fit in one sequence."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write ``k``, ``v`` ``[B, T, Hk, D]`` after the tokens held.

        Returns:
            ``k``, ``v`` ``[B, S, Hk, D]``, views of the storage that are safe until the next append
            to this layer, and
            int64 ``[B]`` lengths with the ``T`` new tokens, on the device of ``k``.

        Raises:
            RequestError: a sequence would grow beyond ``capacity``.
        """

    def advance(self, T: int) -> None:
        """Count the ``T`` tokens that every layer has appended."""

    def rows(self, start: int, stop: int) -> KVStore:
        """Sequences ``start`` to ``stop - 1`` as a cache of their own over the same storage and
        lengths."""

    def truncate(self, row: int, length: int) -> None:
        """Forget what sequence ``row`` holds beyond ``length`` tokens."""

    def copy_row(self, src: int, dst: int) -> None:
        """Make sequence ``dst`` hold what ``src`` holds."""


@dataclass(frozen=True)
class AttentionPlan:
    """What one forward pass hands to every attention layer, computed once."""

    cos: Tensor  # f32 [P, R/2]
    sin: Tensor  # f32 [P, R/2]
    positions: Tensor  # i64 [B, T]
    cache: KVStore | None  # None: the tokens of this pass see each other only
