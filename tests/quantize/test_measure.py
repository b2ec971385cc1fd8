"""Perplexity and divergence against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nybble.errors import SettingError
from nybble.quantize.measure import measure


class Fixed:
    """Answers every position with the same probabilities."""

    def __init__(self, *probabilities: float) -> None:
        self.logits = torch.tensor(probabilities).log()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.logits.expand(*input_ids.shape, -1)


HALF, SKEW = Fixed(0.5, 0.25, 0.25), Fixed(0.25, 0.5, 0.25)


def test_perplexity_by_hand() -> None:
    """Targets 0, 1 and 1, 2: a first token is not predicted."""
    windows = [torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2])]
    result = measure(HALF, windows)
    first, second = (math.log(2) + math.log(4)) / 2, math.log(4)
    assert result.perplexity == pytest.approx(math.exp((first + second) / 2), rel=1e-6)
    deviation = abs(first - second) / math.sqrt(2)
    expected = result.perplexity * deviation / math.sqrt(2)
    assert result.perplexity_stderr == pytest.approx(expected, rel=1e-6)
    assert (result.windows, result.tokens) == (2, 4)
    assert result.kl is None and "kl" not in result.to_dict()


def test_divergence_by_hand() -> None:
    windows = [
        torch.zeros(300, dtype=torch.int64)
    ] * 2  # more positions than are worked out at once
    result = measure(SKEW, windows, HALF)
    assert result.perplexity == pytest.approx(4)
    assert result.reference_perplexity == pytest.approx(2)
    assert result.kl == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-5)
    assert result.kl_stderr == pytest.approx(0, abs=1e-9)
    assert result.top1 == 0
    same = measure(HALF, windows, HALF)
    assert (same.kl, same.top1) == (pytest.approx(0, abs=1e-9), 1)


def test_one_window_has_no_spread() -> None:
    result = measure(SKEW, [torch.zeros(9, dtype=torch.int64)], HALF)
    assert (result.perplexity_stderr, result.kl_stderr, result.top1_stderr) == (None, None, None)
    assert not any("stderr" in name for name in result.to_dict())


def test_progress_and_errors() -> None:
    seen: list[tuple[int, float]] = []
    measure(
        HALF, [torch.tensor([0, 0])] * 2, progress=lambda done, value: seen.append((done, value))
    )
    assert [done for done, _ in seen] == [1, 2] and seen[-1][1] == pytest.approx(2)
    with pytest.raises(SettingError, match="shorter than one window"):
        measure(HALF, [])
    with pytest.raises(SettingError, match="vocabularies of 3 and 2"):
        measure(HALF, [torch.tensor([0, 0])], Fixed(0.5, 0.5))
