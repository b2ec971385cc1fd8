"""One run of the model on some rows of the cache."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nybble.generator.scheduler import Work
from nybble.modules.interfaces import KVStore


class LanguageModel(Protocol):
    """What the generator asks of a model."""

    @property
    def device(self) -> torch.device:
        """Where token ids go."""

    def forward(
        self, input_ids: Tensor, cache: KVStore | None = None, *, last_only: bool = False
    ) -> Tensor:
        """``[B, T]`` int64 to logits float32 ``[B, T, V]`` (``[B, 1, V]`` with ``last_only``);
        extends ``cache``."""

    def new_cache(self, batch: int, capacity: int) -> KVStore:
        """An empty cache of ``batch`` rows of ``capacity`` tokens."""


def run(model: LanguageModel, cache: KVStore, work: Work) -> Tensor:
    """Compute ``work`` and extend its rows; returns the last logits of each row, float32 ``[B,
    V]``."""
    ids = torch.tensor(work.ids, dtype=torch.int64, device=model.device)
    rows = cache.rows(work.row, work.row + len(work.ids))
    return model.forward(ids, cache=rows, last_only=True)[:, -1]
