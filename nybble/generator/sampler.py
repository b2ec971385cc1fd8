"""The choice of the next token of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nybble import ops
from nybble.generator.request import Request


def choose(logits: Tensor, requests: Sequence[Request]) -> list[int]:
    """One token a row of ``logits`` ``[B, V]`` float32 (changed in place by repetition penalties);
    -1 for a row of NaN."""
    device = logits.device

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(r.params, name) for r in requests], dtype=dtype, device=device)

    if any(r.params.repetition_penalty != 1 for r in requests):
        penalty = column("repetition_penalty", torch.float32)
        ops.repetition_penalty_(logits, _seen(requests).to(device), penalty)
    chosen = ops.sample(
        logits,
        column("temperature", torch.float32),
        column("top_k", torch.int64),
        column("top_p", torch.float32),
        column("min_p", torch.float32),
        torch.tensor([r.draw() for r in requests], dtype=torch.float32, device=device),
    )
    tokens: list[int] = chosen.tolist()
    return tokens


def _seen(requests: Sequence[Request]) -> Tensor:
    """Distinct tokens of each request, padded with -1: ``[B, L]`` int64. Rows without a penalty
    stay empty."""
    rows = [sorted(set(r.sequence)) if r.params.repetition_penalty != 1 else [] for r in requests]
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], dtype=torch.int64)
