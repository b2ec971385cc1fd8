"""Who runs next: prompts are read in order of arrival, in pieces, and between two pieces the
running requests decode."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nybble.generator.batch import Batch
from nybble.generator.request import Request, State

# A piece of a prompt: long enough to use the matrix units well, short enough to bound the pause
# of the others.
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Work:
    """One run of the model: ``ids[i]`` go to row ``row + i``; the last logits of each row are
    wanted if ``samples``."""

    requests: list[Request]
    row: int
    ids: list[list[int]]
    samples: bool


class Scheduler:
    """The queue of requests that have no row yet, and the choice of the next :class:`Work`."""

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self._read_last = False

    def next(self, batch: Batch) -> Work | None:
        """The next run, admitting a waiting request where a row is free; None where there is
        nothing to do."""
        if self.waiting and batch.can_admit(self.waiting[0]):
            batch.admit(self.waiting.popleft())
        turn_to_read = not (batch.running and self._read_last)
        self._read_last = batch.prefilling is not None and turn_to_read
        if batch.prefilling is not None and turn_to_read:
            return _read(batch.prefilling)
        if batch.running:
            return Work(
                list(batch.running), 0, [[r.tokens[-1]] for r in batch.running], samples=True
            )
        return None

    def finished(self, work: Work, batch: Batch) -> None:
        """Note what ``work`` has computed; a prompt that is read to its end starts to decode."""
        for request, ids in zip(work.requests, work.ids, strict=True):
            request.computed += len(ids)
            if request.state is State.PREFILL and work.samples:
                batch.start(request)


def _read(request: Request) -> Work:
    stop = min(request.computed + PREFILL_TOKENS, len(request.prompt))
    ids = request.prompt[request.computed : stop]
    return Work([request], request.row, [ids], samples=stop == len(request.prompt))
