"""A model small enough to reason about: its logits are a hash of the whole row, read back from the
real cache."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nybble.cache import FlatCache
from nybble.generator.engine import Engine
from nybble.generator.request import Request, SamplingParams
from tests.kv import append

VOCAB = 512
EOS = 0


class FakeTokenizer:
    """One byte a token, plus one: 0 ends a text. ``decode`` writes U+FFFD for broken UTF-8, as real
    tokenizers do."""

    eos = frozenset({EOS})
    bos = None
    settings: ClassVar[dict[str, object]] = {}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [b + 1 for b in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - 1 for i in ids if 0 < i <= 256).decode(errors="replace")


class FakeModel:
    """Logits of a row depend on all its tokens and nothing else. ``script`` makes it say that text
    after any prompt."""

    device = torch.device("cpu")

    def __init__(self, script: list[int] | None = None, prompt: int = 0) -> None:
        self.script, self.prompt = script, prompt
        self.runs: list[tuple[int, int]] = []  # (rows, tokens) of each run
        self.broken = False

    def new_cache(self, batch: int, capacity: int) -> FlatCache:
        return FlatCache(layers=1, batch=batch, capacity=capacity, kv_heads=1, head_dim=1)

    def forward(
        self, input_ids: Tensor, cache: FlatCache | None = None, *, last_only: bool = False
    ) -> Tensor:
        assert cache is not None and last_only
        if self.broken:
            raise MemoryError("no memory for this run")
        self.runs.append(tuple(input_ids.shape))
        k = input_ids[:, :, None, None].float()
        held, _, lengths = append(cache, 0, k, k)
        cache.advance(input_ids.shape[1])
        rows = [held[b, :n, 0, 0].long().tolist() for b, n in enumerate(lengths.tolist())]
        return torch.stack([self._logits(row) for row in rows])[:, None]

    def _logits(self, row: list[int]) -> Tensor:
        if self.script is not None:
            logits = torch.full((VOCAB,), -1e4)
            logits[self.script[len(row) - self.prompt]] = 1.0
            return logits
        state = 7
        for token in row:
            state = (state * 1_000_003 + token + 1) % (2**31 - 1)
        logits = torch.full(
            (VOCAB,), -1e4
        )  # no EOS: lengths are the test's choice; printable letters only
        logits[34:128] = torch.randn(94, generator=torch.Generator().manual_seed(state)) * 3
        return logits


def engine(model: FakeModel | None = None, **options: object) -> Engine:
    settings: dict[str, object] = {"context": 256, "vocab": VOCAB, "rows": 3} | options
    return Engine(model or FakeModel(), FakeTokenizer(), **settings)  # type: ignore[arg-type]


def says(script: list[int], prompt: str = "x") -> Engine:
    """An engine whose model says ``script`` after a prompt as long as ``prompt``."""
    return engine(FakeModel(script + [EOS] * 300, prompt=len(prompt)))


def ask(engine: Engine, prompt: str = "x", **params: object) -> Request:
    """A queued request."""
    ids = FakeTokenizer().encode(prompt)
    request = engine.request(ids, SamplingParams(**params))  # type: ignore[arg-type]
    engine.submit(request)
    return request
