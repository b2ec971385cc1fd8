"""``sample_chain``: the next token through sampling steps in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake
from nybble.ops.sample_steps import PerRow, Step

_sample_chain = torch.ops.nybble.sample_chain.default


@dataclass(frozen=True)
class Choice:
    """What :func:`sample_chain` chose, and the candidates it could choose from."""

    token: Tensor  # int64 [B]; -1 for a row with no candidate
    probability: Tensor  # float32 [B], of the token among the candidates that were left; 0 for -1
    top_tokens: Tensor  # int64 [B, top], the first candidates that were left; -1: no more above 0
    top_probabilities: Tensor  # float32 [B, top]


def sample_chain(
    logits: Tensor,
    temperature: PerRow,
    steps: Sequence[Step],
    random: Tensor,
    *,
    allowed: Tensor | None = None,
    removable: Tensor | None = None,
    top: int = 0,
) -> Choice:
    """One token a row from ``softmax(logits / temperature)`` after ``steps``, by inverse transform with ``random``.

    At first every token is a candidate, in order of id; those not allowed have probability 0. Then come the
    steps. The token is the first, in the order the last step leaves, whose running sum exceeds ``random``
    times the sum.

    Args:
        logits: float32 ``[B, V]``.
        temperature: 0: greedy, the lowest id among the largest logits, whatever the steps.
        steps: from :mod:`nybble.ops.sample_steps`, in the order they are taken.
        random: float32 ``[B]``, in ``[0, 1)``.
        allowed: bool ``[B, V]``; ``None``: every token.
        removable: bool ``[V]``, the tokens that :class:`Xtc` may make less probable; ``None``: all.
        top: how many of the candidates left to report, at most V.

    Returns a :class:`Choice`. A row of NaN, or with no allowed logit above -inf, has token -1; on a GPU so
    has one with a value out of range. Raises ``RuntimeError`` naming what does not fit.

    >>> from nybble.ops.sample_steps import MinP, TopK
    >>> logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    >>> choice = sample_chain(logits, 1.0, [TopK(3), MinP(0.2)], torch.tensor([0.9]), top=3)
    >>> choice.token, choice.top_tokens
    (tensor([2]), tensor([[ 1,  2, -1]]))
    """
    ensure_loaded()
    B = logits.shape[0] if logits.dim() > 0 else 0
    columns = [value for step in steps for value in step.values()]
    made = _sample_chain(
        logits,
        _columns([temperature], B, logits.device)[:, 0],
        allowed,
        removable,
        [step.number for step in steps],
        _columns(columns, B, logits.device),
        random,
        top,
    )
    return Choice(*made)


def _columns(values: Sequence[PerRow], B: int, device: torch.device) -> Tensor:
    """float32 ``[B, C]``, one column a value."""
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor([values], dtype=torch.float32, device=device).expand(B, len(values))
    return torch.stack(
        [
            value if isinstance(value, Tensor) else torch.full((B,), value, device=device)
            for value in values
        ],
        dim=1,
    )


@register_fake("nybble::sample_chain")
def _(
    logits: Tensor,
    temperature: Tensor,
    allowed: Tensor | None,
    removable: Tensor | None,
    steps: list[int],
    values: Tensor,
    random: Tensor,
    top: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B = logits.shape[0]
    return (
        logits.new_empty(B, dtype=torch.int64),
        logits.new_empty(B),
        logits.new_empty(B, top, dtype=torch.int64),
        logits.new_empty(B, top),
    )
