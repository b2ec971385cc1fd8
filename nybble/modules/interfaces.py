"""What layers ask of a cache, and what one forward pass hands to every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class KVStore(Protocol):
    """Keys and values of ``B`` sequences in every layer.

    One step is: ``slots`` filled once in each layer, all with the same ``T``, then ``advance(T)``.
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

    def slots(self, layer: int, T: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where ``T`` new tokens of each sequence go.

        Returns:
            keys, values ``[B, Hk, S, D]``, the storage itself, and int64 ``[B]`` lengths with the new tokens, on its
            device: those of sequence ``b`` belong at ``lengths[b] - T`` to ``lengths[b] - 1``.

        Raises:
            RequestError: a sequence would grow beyond ``capacity``.
        """

    def advance(self, T: int) -> None:
        """Count the ``T`` tokens that every layer has taken in."""

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
