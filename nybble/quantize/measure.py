"""What a quantization cost: perplexity of a model on text, and how far it is from another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nybble.errors import SettingError

_ROWS = 128  # positions whose probabilities are worked out at once; bounds the memory at large vocabularies


class Forward(Protocol):
    """The one thing asked of a model."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 ``[B, T]`` to logits ``[B, T, V]``."""


@dataclass(frozen=True)
class Measurement:
    """Means over windows; a ``_stderr`` is the standard error of the mean, from the spread between windows: of one, None."""

    perplexity: float
    perplexity_stderr: float | None
    windows: int
    tokens: int  # predictions counted
    reference_perplexity: float | None = None
    kl: float | None = None  # mean KL(reference || model) a token, nats
    kl_stderr: float | None = None
    top1: float | None = None  # share of tokens whose likeliest next token is the reference's
    top1_stderr: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure(
    model: Forward,
    windows: Iterable[Tensor],
    reference: Forward | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Measurement:
    """Run ``model`` over token windows ``[T]``; every token but a window's first is predicted from those before it.

    Args:
        reference: a model with the same vocabulary to compare with.
        progress: called after each window with the windows done and the perplexity so far.

    Raises SettingError when there is no window of text, or the vocabularies differ.
    """
    rows: list[tuple[float, ...]] = []
    tokens = 0
    for window in windows:
        with torch.inference_mode():
            logits = model.forward(window[None, :-1])[0]
            other = None if reference is None else reference.forward(window[None, :-1])[0]
        rows.append(_one_window(logits, other, window[1:]))
        tokens += window.numel() - 1
        if progress is not None:
            progress(len(rows), math.exp(sum(row[0] for row in rows) / len(rows)))
    if not rows:
        raise SettingError(
            "the text is shorter than one window; give more text, or a smaller --length"
        )
    return _summary(torch.tensor(rows, dtype=torch.float64), tokens, reference is not None)


def _one_window(logits: Tensor, other: Tensor | None, targets: Tensor) -> tuple[float, ...]:
    """Mean negative log likelihood, and with a reference its likelihood, the divergence and the agreement."""
    if other is not None and other.shape != logits.shape:
        raise SettingError(
            f"the models have vocabularies of {logits.shape[-1]} and {other.shape[-1]} tokens; "
            "a model can only be compared with one it was made from"
        )
    totals = [0.0] * (1 if other is None else 4)
    for start in range(0, len(targets), _ROWS):
        part = slice(start, start + _ROWS)
        goal = targets[part, None].to(logits.device)
        log_p = logits[part].float().log_softmax(-1)
        totals[0] -= float(log_p.gather(1, goal).sum(dtype=torch.float64))
        if other is None:
            continue
        log_q = other[part].float().log_softmax(-1)
        totals[1] -= float(log_q.gather(1, goal).sum(dtype=torch.float64))
        totals[2] += float((log_q.exp() * (log_q - log_p)).sum(dtype=torch.float64))
        totals[3] += float((log_q.argmax(-1) == log_p.argmax(-1)).sum())
    return tuple(total / len(targets) for total in totals)


def _summary(rows: Tensor, tokens: int, compared: bool) -> Measurement:
    """Means and their standard errors of rows ``[windows, 1 or 4]``."""
    n = rows.shape[0]
    mean = rows.mean(0)
    error: list[float | None] = [None] * rows.shape[1]
    if n > 1:
        error = (rows.std(0) / math.sqrt(n)).tolist()
    perplexity = math.exp(float(mean[0]))
    spread = None if error[0] is None else perplexity * error[0]
    basic = Measurement(perplexity, spread, n, tokens)
    if not compared:
        return basic
    return Measurement(
        **{
            name: getattr(basic, name)
            for name in ("perplexity", "perplexity_stderr", "windows", "tokens")
        },
        reference_perplexity=math.exp(float(mean[1])),
        kl=float(mean[2]),
        kl_stderr=error[2],
        top1=float(mean[3]),
        top1_stderr=error[3],
    )
