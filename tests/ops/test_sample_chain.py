"""What the table of cases cannot say of ``sample_chain``: settings by row, independence of rows, the wrapper's arguments."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nybble import ops
from nybble.ops import sample_steps
from nybble.ops.reference.sample_chain import STEPS
from nybble.ops.sample_steps import MinP, Step, Surprise, Temper, TopK, TopP, Xtc


def test_each_row_has_its_own_settings_and_does_not_see_the_others() -> None:
    """More rows than threads, so that a thread's memory serves several of them."""
    B = 9
    logits, random = torch.randn(B, 500), torch.rand(B)
    heat = torch.linspace(0.5, 2.0, B) * (torch.arange(B) != 4)  # one row is greedy
    k, p = torch.arange(B).float() * 7, torch.linspace(0.5, 1.0, B)
    allowed = torch.rand(B, 500) < 0.6

    def chain(k: float | torch.Tensor, p: float | torch.Tensor) -> list[Step]:
        return [TopK(k), TopP(p), MinP(0.01)]

    together = ops.sample_chain(logits, heat, chain(k, p), random, allowed=allowed, top=6)
    for b in range(B):
        alone = ops.sample_chain(
            logits[b : b + 1],
            float(heat[b]),
            chain(float(k[b]), float(p[b])),
            random[b : b + 1],
            allowed=allowed[b : b + 1],
            top=6,
        )
        for field in dataclasses.fields(alone):
            assert torch.equal(getattr(alone, field.name)[0], getattr(together, field.name)[b])


def test_agrees_with_sample_where_both_can_say_it() -> None:
    """They order equal candidates differently, so there are none."""
    logits, random = torch.randn(40, 300) * 2, torch.rand(40)
    one = torch.ones(40)
    plain = ops.sample(logits, one * 0.8, (one * 30).long(), one * 0.9, one * 0.02, random)
    # sample takes top-p's share of all candidates, so it comes first here.
    chain = ops.sample_chain(logits, 0.8, [TopP(0.9), TopK(30), MinP(0.02)], random)
    assert torch.equal(plain, chain.token)


def test_the_three_lists_of_steps_agree() -> None:
    classes = [
        c
        for c in vars(sample_steps).values()
        if isinstance(c, type) and issubclass(c, Step) and c is not Step
    ]
    assert sorted(c.number for c in classes) == list(range(len(STEPS)))
    for c in classes:
        assert len(dataclasses.fields(c)) == STEPS[c.number][1]


@pytest.mark.parametrize(
    "step", [TopK(-1), TopP(math.nan), Temper(-0.5), Xtc(1.5, 0.1), Surprise(-1), MinP(-math.inf)]
)
def test_values_out_of_range(step: Step) -> None:
    with pytest.raises(RuntimeError, match="sample_chain: values"):
        ops.sample_chain(torch.zeros(1, 4), 1.0, [step], torch.zeros(1))


def test_more_reports_than_tokens() -> None:
    with pytest.raises(RuntimeError, match="top is 5, expected 0 to V = 4"):
        ops.sample_chain(torch.zeros(1, 4), 1.0, [], torch.zeros(1), top=5)
