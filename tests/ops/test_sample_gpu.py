"""What the table of cases cannot say of sampling on a GPU: no run, batch or bad value changes what it should not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nybble import ops
from nybble.ops.sample_steps import MinP, Step, TopK, TopP, TopPStream, Typical, Xtc

pytestmark = pytest.mark.gpu


def settings(B: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Temperature, top_k, top_p, min_p and random of rows that differ."""
    row = torch.arange(B, device="cuda")
    return (
        row % 4 * 0.5,
        row % 3 * 700,
        1 - row % 5 * 0.1,
        row % 2 * 0.01,
        torch.rand(B, device="cuda"),
    )


@pytest.mark.parametrize("V", [300, 20011, 128256])
@pytest.mark.parametrize("coarse", [False, True])
def test_a_token_depends_on_its_row_alone(V: int, coarse: bool) -> None:
    """One row is shared by more blocks than many are, and running sums must not feel it."""
    logits = torch.randn(70, V, device="cuda") * 2
    logits = logits.round() if coarse else logits
    columns = settings(70)
    together = ops.sample(logits, *columns)
    assert torch.equal(together, ops.sample(logits, *columns))
    for b in (0, 33, 69):
        alone = ops.sample(logits[b : b + 1], *(c[b : b + 1] for c in columns))
        assert torch.equal(alone, together[b : b + 1])


@pytest.mark.parametrize("steps", [[TopK(1500)], [TopP(0.9), Typical(0.8)], [TopPStream(0.5)]])
def test_a_chain_depends_on_its_row_alone(steps: list[Step]) -> None:
    """More rows than are under way at a time."""
    logits, random = torch.randn(70, 9001, device="cuda"), torch.rand(70, device="cuda")
    together = ops.sample_chain(logits, 0.9, steps, random, top=20)
    for b in (0, 69):
        alone = ops.sample_chain(logits[b : b + 1], 0.9, steps, random[b : b + 1], top=20)
        assert torch.equal(alone.token[0], together.token[b])
        assert torch.equal(alone.top_tokens[0], together.top_tokens[b])
        assert torch.equal(alone.top_probabilities[0], together.top_probabilities[b])


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("value", [-1.0, 1.5, math.nan])
def test_a_value_out_of_range_gives_no_token(column: int, value: float) -> None:
    if (column, value) == (0, 1.5) or (column == 1 and value != -1):
        pytest.skip("a good value, or none of an integer")
    columns = list(settings(3))
    columns[column] = torch.full_like(columns[column], value)
    assert ops.sample(torch.randn(3, 9000, device="cuda"), *columns).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("step", [TopK(-1), TopP(math.nan), MinP(-math.inf), Xtc(1.5, 0.1)])
def test_a_step_out_of_range_gives_no_token(step: Step) -> None:
    random = torch.rand(2, device="cuda")
    choice = ops.sample_chain(torch.randn(2, 3000, device="cuda"), 1.0, [step], random, top=2)
    assert choice.token.tolist() == [-1, -1] and choice.probability.tolist() == [0, 0]
    assert choice.top_tokens.tolist() == [[-1, -1], [-1, -1]]


def test_a_token_outside_the_vocabulary_is_no_token() -> None:
    logits = torch.ones(1, 5, device="cuda")
    tokens = torch.tensor([[-7, 5, 1 << 40, 3]], device="cuda")
    ops.repetition_penalty_(logits, tokens, torch.full((1,), 2.0, device="cuda"))
    assert logits.tolist() == [[1, 1, 1, 0.5, 1]]
