"""The loop: schedule, run, sample, collect. One engine serves any number of requests and
threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch

from nybble.errors import NybbleError, RequestError
from nybble.generator import sampler
from nybble.generator.batch import Batch
from nybble.generator.request import Completion, Piece, Request, SamplingParams, State
from nybble.generator.runner import LanguageModel, run
from nybble.generator.scheduler import Scheduler, Work
from nybble.generator.stream import TextStream
from nybble.generator.tokenizer import Tokenizer

# Caches are made in steps of so many tokens, so that similar requests share one.
CAPACITY_STEP = 256
# Prompt tokens given to the detokenizer: enough that the first generated word keeps its leading
# space.
CONTEXT_TOKENS = 6


class Engine:
    """Requests in, pieces of text out, batched continuously.

    Args:
        model: see :class:`nybble.generator.runner.LanguageModel`.
        tokenizer: decodes the tokens and names those that end a text.
        context: most tokens of prompt and completion together.
        vocab: number of token ids the model knows.
        rows: most requests that run together.
        capacity: tokens a row; None: grown to what the requests ask for (whenever nothing runs).
        reuse: keep the keys and values of finished requests for prompts that begin in the same way.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        context: int,
        vocab: int,
        rows: int = 8,
        capacity: int | None = None,
        reuse: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.context, self.vocab = context, vocab
        self._rows, self._reuse = rows, reuse
        self._lock = threading.Lock()
        self._scheduler = Scheduler()
        self._batch: Batch | None = None
        if capacity is not None:
            self._batch = self._new_batch(rows, capacity)

    def request(
        self, prompt: Sequence[int], params: SamplingParams, *, stops: Sequence[str] = ()
    ) -> Request:
        """A checked request for a prompt of token ids, not queued yet; ``stops`` come on top of
        those in ``params``.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or does not fit into
            the context.
        """
        ids = list(prompt)
        budget = self._budget(ids, params)
        text = TextStream(self.tokenizer.decode, (*params.stops, *stops), ids[-CONTEXT_TOKENS:])
        return Request(ids, params, budget, text, self.tokenizer.eos)

    def submit(self, request: Request) -> None:
        """Queue a new request; nothing is computed before :meth:`step`."""
        with self._lock:
            request.wait()
            self._scheduler.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End ``request`` before the next run, with finish_reason "cancelled"; nothing happens if
        it is done.

        Takes no lock: it may come from a finalizer in the middle of a run.
        """
        request.unwanted = True

    def step(self) -> bool:
        """Run the model once for whoever is next; False where there was nothing to do.

        Raises:
            Exception: whatever the model raised; every request that was running has failed with it.
        """
        with self._lock, torch.inference_mode():
            self._drop_unwanted()
            batch = self._batch = self._fit(self._batch)
            work = None if batch is None else self._scheduler.next(batch)
            if batch is None or work is None:
                return False
            try:
                logits = run(self.model, batch.cache, work)
                self._scheduler.finished(work, batch)
                if work.samples:
                    self._collect(work, batch, sampler.choose(logits, work.requests))
            except BaseException as error:
                self._fail(batch, error)
                raise
            return True

    def pieces(self, request: Request) -> Iterator[Piece]:
        """The pieces of ``request`` as they come, running the engine meanwhile. Leaving early
        cancels it."""
        if request.state is State.NEW:
            self.submit(request)
        try:
            while True:
                while request.outbox:
                    yield request.outbox.popleft()
                if request.done:
                    break
                self.step()
            if request.error is not None:
                raise request.error
        finally:
            self.cancel(request)

    def _drop_unwanted(self) -> None:
        waiting = self._scheduler.waiting
        for request in [r for r in waiting if r.unwanted]:
            waiting.remove(request)
            request.finish("cancelled")
        if self._batch is not None:
            for request in [r for r in self._batch.active if r.unwanted]:
                self._batch.release(request)
                request.finish("cancelled")

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """Give up the cache, which may be half written, and tell everybody who was on it."""
        self._batch = None
        for request in batch.active:
            request.fail(error)

    def _collect(self, work: Work, batch: Batch, tokens: list[int]) -> None:
        for request, token in zip(work.requests, tokens, strict=True):
            if token < 0:
                request.fail(
                    NybbleError(
                        f"the model's logits are not numbers after {len(request.sequence)} tokens"
                    )
                )
            else:
                request.accept(token)
            if request.done:
                batch.release(request)

    def _fit(self, batch: Batch | None) -> Batch | None:
        """A batch that the first waiting request fits into; the same one while anything runs on
        it."""
        waiting = self._scheduler.waiting
        if not waiting or (batch is not None and batch.active):
            return batch
        need = max(len(r.prompt) + r.budget for r in waiting)
        rows = min(self._rows, len(waiting))
        if batch is not None:
            if batch.cache.capacity >= need and batch.rows >= rows:
                return batch
            rows, need = max(rows, batch.rows), max(need, batch.cache.capacity)
        return self._new_batch(rows, min(-(-need // CAPACITY_STEP) * CAPACITY_STEP, self.context))

    def _new_batch(self, rows: int, capacity: int) -> Batch:
        self._batch = None  # lets the old cache go before the new one takes memory
        return Batch(self.model.new_cache(rows, capacity), rows, reuse=self._reuse)

    def _budget(self, ids: list[int], params: SamplingParams) -> int:
        if not ids:
            raise RequestError(
                "the prompt has no tokens, and the model has no beginning-of-text token; "
                "give it text"
            )
        wrong = [i for i in ids if not 0 <= i < self.vocab]
        if wrong:
            raise RequestError(
                f"the prompt has token id {wrong[0]}; expected ids in 0..{self.vocab - 1}"
            )
        room = self.context - len(ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; the context is {self.context}, with at "
                "least one for the answer. Shorten the prompt"
            )
        if params.max_tokens is not None and params.max_tokens > room:
            raise RequestError(
                f"the prompt has {len(ids)} tokens and max_tokens is {params.max_tokens}; "
                f"together they exceed the context of {self.context}. Shorten the prompt, or set "
                f"max_tokens to {room} or less (or None)"
            )
        return room if params.max_tokens is None else params.max_tokens


def completion(pieces: Sequence[Piece]) -> Completion:
    """The pieces of one request as one text."""
    last = pieces[-1]
    assert last.finish_reason is not None and last.usage is not None and last.timings is not None
    text = "".join(p.text for p in pieces)
    ids = [i for p in pieces for i in p.token_ids]
    return Completion(text, ids, last.finish_reason, last.usage, last.timings)
