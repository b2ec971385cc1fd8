"""Paley's matrices: entries of 1 and -1, orthogonal rows, and no answer where there is none."""

from __future__ import annotations

import pytest
import torch

from nybble import ops


@pytest.mark.parametrize("n", [4, 8, 12, 20, 24, 60, 212])
def test_paley_1(n: int) -> None:
    h = ops.paley1(n)
    assert torch.equal(h.abs(), torch.ones(n, n)) and torch.equal(h @ h.T, n * torch.eye(n))
    assert ops.paley1(n, torch.int8).dtype == torch.int8


@pytest.mark.parametrize("n", [12, 28, 36, 60, 76])
def test_paley_2(n: int) -> None:
    h = ops.paley2(n)
    assert torch.equal(h.abs(), torch.ones(n, n)) and torch.equal(h @ h.T, n * torch.eye(n))


@pytest.mark.parametrize(
    ("construct", "n"),
    [(ops.paley1, n) for n in (-4, 0, 1, 2, 6, 16, 28)]
    + [(ops.paley2, n) for n in (-4, 0, 2, 8, 13, 20, 44)],
)
def test_paley_refuses_sizes_it_cannot_make(construct: object, n: int) -> None:
    with pytest.raises(ValueError, match=f"n is {n}"):
        construct(n)  # type: ignore[operator]
