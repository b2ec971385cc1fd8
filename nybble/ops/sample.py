"""``sample`` and ``repetition_penalty_``: the choice of the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_sample = torch.ops.nybble.sample.default
_repetition_penalty = torch.ops.nybble.repetition_penalty_.default


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    random: Tensor,
) -> Tensor:
    """One token a row: temperature, softmax, top-k, top-p, min-p, then inverse transform with ``random``.

    Candidates are sorted by (probability descending, id ascending). top-p keeps the shortest prefix whose mass reaches p
    (at least one); min-p keeps probability >= min_p * largest. The token is the first whose running sum exceeds
    ``random`` times the kept mass.

    Args:
        logits: float32 ``[B, V]``.
        temperature: float32 ``[B]``, 0: greedy, the lowest id among the largest logits.
        top_k: int64 ``[B]``, 0: off.
        top_p: float32 ``[B]``, 1: off.
        min_p: float32 ``[B]``, 0: off.
        random: float32 ``[B]``, in ``[0, 1)``.

    Returns int64 ``[B]``; -1 for a row with NaN or of -inf only, and on a GPU for one with a value out of range. Raises
    ``RuntimeError`` naming what does not fit.

    >>> zero = torch.zeros(1)
    >>> sample(torch.tensor([[0.0, 2.0, 1.0]]), zero, zero.long(), zero + 1, zero, zero)
    tensor([1])
    """
    ensure_loaded()
    tokens: Tensor = _sample(logits, temperature, top_k, top_p, min_p, random)
    return tokens


def repetition_penalty_(
    logits: Tensor,
    tokens: Tensor,
    penalty: Tensor,
    frequency: Tensor | None = None,
    presence: Tensor | None = None,
    *,
    sustain: int = -1,
    decay: int = 0,
) -> Tensor:
    """``logits[b, t] *= p`` if negative, else ``/= p``, ``-= presence``, once a distinct token; ``-= frequency`` each time.

    In place. The last ``sustain`` tokens have strength 1. The one before them has it too, and from there it falls by
    ``1 / decay`` a token, to 0. A token's strength at its last place scales ``presence`` and the penalty,
    ``p = 1 + strength * (penalty - 1)``; ``frequency`` is scaled by the strength of each place.

    Args:
        logits: float32 ``[B, V]``, unit stride along V; changed in place.
        tokens: int64 ``[B, L]``, oldest first, each in ``[0, V)`` or -1, which is a place without a token. A GPU takes
            what is outside for -1.
        penalty: float32 ``[B]``, more than 0; 1: off.
        frequency, presence: float32 ``[B]``; ``None``: 0, which is off.
        sustain: -1: all tokens.
        decay: 0: tokens beyond ``sustain`` do not count.

    Returns ``logits``. Raises ``RuntimeError`` naming what does not fit.

    >>> repetition_penalty_(torch.tensor([[4.0, -4.0, 1.0]]), torch.tensor([[0, 1, 1]]), torch.tensor([2.0]))
    tensor([[ 2., -8.,  1.]])
    """
    ensure_loaded()
    _repetition_penalty(logits, tokens, penalty, frequency, presence, sustain, decay)
    return logits


@register_fake("nybble::sample")
def _(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    random: Tensor,
) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


@register_fake("nybble::repetition_penalty_")
def _(
    logits: Tensor,
    tokens: Tensor,
    penalty: Tensor,
    frequency: Tensor | None = None,
    presence: Tensor | None = None,
    sustain: int = -1,
    decay: int = 0,
) -> None:
    return None
