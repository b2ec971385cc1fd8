"""Which request lives on which row of the cache.

Rows ``[0, running)`` decode together, so they are kept without gaps: where one ends, the last moves
into its place. The request that is reading its prompt, at most one, has the row after them. The
rows after that are free, but remember the tokens whose keys and values they still hold, so that a
prompt with the same beginning need not compute it again.
"""

from __future__ import annotations

from collections.abc import Sequence

from nybble.generator.request import Request, State
from nybble.modules.interfaces import KVStore


class Batch:
    """Requests on the rows of ``cache``; with ``reuse`` a free row's tokens serve as a prefix."""

    def __init__(self, cache: KVStore, rows: int, *, reuse: bool) -> None:
        self.cache, self.rows, self.reuse = cache, rows, reuse
        self.running: list[Request] = []
        self.prefilling: Request | None = None
        self._kept: list[list[int]] = [[] for _ in range(rows)]

    @property
    def active(self) -> list[Request]:
        """Every request that has a row."""
        return self.running if self.prefilling is None else [*self.running, self.prefilling]

    def can_admit(self, request: Request) -> bool:
        """Whether a row is free, none is being filled, and the request fits into a row."""
        fits = len(request.prompt) + request.budget <= self.cache.capacity
        return self.prefilling is None and len(self.running) < self.rows and fits

    def admit(self, request: Request) -> None:
        """Give ``request`` the first free row, holding as much of its prompt as any free row
        does."""
        row = len(self.running)
        best, shared = row, 0
        if self.reuse:
            free = range(row, self.rows)
            best = max(free, key=lambda r: _common(self._kept[r], request.prompt))
            # At least one token must be computed: its logits choose the next.
            shared = min(_common(self._kept[best], request.prompt), len(request.prompt) - 1)
        if best != row and shared:
            self.cache.copy_row(best, row)
        self.cache.truncate(row, shared)
        self._kept[row] = []
        request.admit(row, shared)
        self.prefilling = request

    def start(self, request: Request) -> None:
        """The prompt is read: ``request`` decodes from now on."""
        request.state, self.prefilling = State.RUNNING, None
        self.running.append(request)

    def release(self, request: Request) -> None:
        """Free the row of ``request`` and close the gap."""
        gap = request.row
        self._kept[gap] = request.sequence[: request.computed]
        if request is self.prefilling:
            self.prefilling = None
            return
        self._move(self.running[-1], gap)
        self.running[gap] = self.running[-1]
        self.running.pop()
        if self.prefilling is not None:
            self._move(self.prefilling, len(self.running))

    def _move(self, request: Request, row: int) -> None:
        if request.row != row:
            self.cache.copy_row(request.row, row)
            self._kept[request.row] = request.sequence[: request.computed]
            self._kept[row] = []
            request.row = row


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
