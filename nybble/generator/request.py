"""What is asked (SamplingParams), how far it is (Request), and what comes out (Piece, Completion).
No torch here."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from nybble.errors import RequestError

if TYPE_CHECKING:
    from nybble.generator.stream import TextStream


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    The order is: repetition penalty, temperature, softmax, top-k, top-p, min-p, one draw.

    Args:
        max_tokens: most tokens to generate, at least 1; None: until the context is full.
        temperature: 0 is greedy; below 1 sharpens, above 1 flattens.
        top_k: keep the k most likely tokens; 0: all.
        top_p: keep the shortest list of tokens whose probability reaches this; 1: all.
        min_p: keep tokens at least this fraction as likely as the likeliest; 0: all.
        repetition_penalty: divides the positive logits of tokens already seen (and multiplies the
            negative); 1: off.
        seed: makes the draws repeatable, whatever else runs in the batch; None: different each
            time.
        stop: one string or several; generation ends before the first that appears, and it is not
            part of the text.
        ignore_eos: go on after an end-of-text token.

    Raises:
        RequestError: a value is out of range; the text names the range.

    >>> SamplingParams(temperature=0).temperature
    0
    >>> SamplingParams(top_p=1.5)
    Traceback (most recent call last):
    ...
    nybble.errors.RequestError: top_p is 1.5; expected a number above 0 and at most 1 (1: off)
    """

    max_tokens: int | None = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        most = self.max_tokens
        _check(
            most is None or (_is_int(most) and most >= 1),
            "max_tokens",
            most,
            "an integer of at least 1, or None (until the context is full)",
        )
        _check(
            _is_number(self.temperature, 0, 100),
            "temperature",
            self.temperature,
            "a number in 0..100 (0: greedy)",
        )
        _check(
            _is_int(self.top_k) and self.top_k >= 0,
            "top_k",
            self.top_k,
            "an integer of at least 0 (0: off)",
        )
        _check(
            _is_number(self.top_p, 0, 1) and self.top_p > 0,
            "top_p",
            self.top_p,
            "a number above 0 and at most 1 (1: off)",
        )
        _check(_is_number(self.min_p, 0, 1), "min_p", self.min_p, "a number in 0..1 (0: off)")
        penalty = self.repetition_penalty
        _check(
            _is_number(penalty, 0, 100) and penalty > 0,
            "repetition_penalty",
            penalty,
            "a number above 0 and at most 100 (1: off)",
        )
        _check(self.seed is None or _is_int(self.seed), "seed", self.seed, "an integer or None")
        stops = self.stop
        _check(
            isinstance(stops, str) or all(isinstance(s, str) for s in stops),
            "stop",
            stops,
            "a string or a list of them",
        )
        _check(all(self.stops), "stop", stops, "strings that are not empty")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple; ``stop=""`` means none."""
        if isinstance(self.stop, str):
            return (self.stop,) if self.stop else ()
        return tuple(self.stop)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object, low: float, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and low <= value <= high


def _check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RequestError(f"{name} is {value!r}; expected {expected}")


@dataclass(frozen=True)
class Usage:
    """Tokens counted: those of the prompt (with the beginning-of-text token) and those generated
    (with the last)."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds: waiting for a row, reading the prompt up to the first token, and the tokens after
    the first."""

    queue_s: float
    prefill_s: float
    decode_s: float
    prefill_tokens: (
        int  # prompt tokens really computed: fewer than the prompt has where a prefix was reused
    )
    decode_tokens: int  # tokens after the first

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Generated tokens a second, the first not counted."""
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Piece:
    """A part of a streamed text. The last one has ``finish_reason``, ``usage`` and ``timings``."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True)
class Completion:
    """A finished text. ``finish_reason``: "stop" (end of text, or a stop string), "length" or
    "cancelled"."""

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings


class State(Enum):
    """Where a request is; it only moves down this list."""

    NEW = "new"
    WAITING = "waiting"
    PREFILL = "prefill"
    RUNNING = "running"
    DONE = "done"


_ids = itertools.count()


@dataclass(eq=False)
class Request:
    """One prompt on its way. The scheduler moves it; :meth:`accept` and :meth:`finish` are its only
    ways forward."""

    prompt: list[int]
    params: SamplingParams
    budget: int  # most tokens to generate
    text: TextStream
    eos: frozenset[int]
    id: int = field(default_factory=lambda: next(_ids))
    state: State = State.NEW
    row: int = -1  # of the cache, while PREFILL or RUNNING
    computed: int = 0  # tokens whose keys and values are in the cache
    reused: int = 0  # of those, how many were there before
    tokens: list[int] = field(default_factory=list)
    outbox: deque[Piece] = field(default_factory=deque)
    finish_reason: str | None = None
    error: BaseException | None = None
    unwanted: bool = False  # nobody reads it any more; the engine ends it before its next run

    def __post_init__(self) -> None:
        # Each request draws from its own generator, so its tokens do not depend on its neighbours
        # in the batch.
        self._random = random.Random(self.params.seed)
        self._submitted = self._admitted = self._first = self._last = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether no more pieces will come."""
        return self.state is State.DONE

    @property
    def sequence(self) -> list[int]:
        """Prompt and generated tokens."""
        return self.prompt + self.tokens

    def draw(self) -> float:
        """The next random number, uniform in [0, 1) and exact in float32."""
        return self._random.getrandbits(24) / 2**24

    def wait(self) -> None:
        """Enter the queue."""
        self.state, self._submitted = State.WAITING, time.perf_counter()

    def admit(self, row: int, reused: int) -> None:
        """Take a row of the cache that already holds the first ``reused`` tokens."""
        self.state, self.row, self.computed, self.reused = State.PREFILL, row, reused, reused
        self._admitted = time.perf_counter()

    def accept(self, token: int) -> None:
        """Add a chosen token; queue the text it makes safe to show; finish where it ends the
        text."""
        self._last = time.perf_counter()
        if not self.tokens:
            self._first = self._last
        self.tokens.append(token)
        if token in self.eos and not self.params.ignore_eos:
            return self.finish("stop", [token])
        shown = self.text.push(token)
        if self.text.stopped:
            return self.finish("stop", [token], shown)
        if len(self.tokens) >= self.budget:
            return self.finish("length", [token], shown)
        self.outbox.append(Piece(shown, [token]))

    def finish(self, reason: str, token_ids: list[int] | None = None, shown: str = "") -> None:
        """Queue the last piece, with whatever text was held back."""
        self.state, self.finish_reason = State.DONE, reason
        text = shown + self.text.finish()
        self.outbox.append(Piece(text, token_ids or [], reason, self.usage(), self.timings()))

    def fail(self, error: BaseException) -> None:
        """End without a last piece; whoever reads the request raises ``error``."""
        self.state, self.error = State.DONE, error

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.prompt), len(self.tokens))

    def timings(self) -> Timings:
        """Seconds so far."""
        return Timings(
            queue_s=self._admitted - self._submitted,
            prefill_s=max(self._first - self._admitted, 0.0),
            decode_s=self._last - self._first,
            prefill_tokens=len(self.prompt) - self.reused if self.tokens else 0,
            decode_tokens=max(len(self.tokens) - 1, 0),
        )
