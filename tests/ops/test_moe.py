"""Mixture of experts: every row reaches the experts it chose, whoever else chose them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nybble import ops
from nybble.ops.reference.moe import moe_route as reference


@pytest.mark.parametrize("E", [4, 5, 16, 128])
def test_every_row_reaches_its_experts(E: int) -> None:
    """Rows with routes of their own, and with shared ones, against one row and one expert at a time."""
    T, D, k = 40, 6, 3
    x, w = torch.randn(T, D), torch.randn(E, D, D)
    weights, experts = ops.moe_route(torch.randn(T, E), k)
    got = ops.moe_apply(x, weights, experts, lambda e, rows: rows @ w[e])
    want = torch.zeros(T, D, dtype=torch.float64)
    for t in range(T):
        for j in range(k):
            want[t] += weights[t, j].double() * (x[t].double() @ w[experts[t, j]].double())
    assert (got - want).abs().max() < 1e-5


def test_an_expert_runs_once_on_all_its_rows() -> None:
    calls: list[tuple[int, list[float]]] = []

    def run(e: int, rows: Tensor) -> Tensor:
        calls.append((e, rows[:, 0].tolist()))
        return rows

    x = torch.tensor([[10.0], [20.0], [30.0]])
    experts = torch.tensor([[7, 2], [2, 3], [3, 7]])
    weights = torch.tensor(
        [[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]
    )  # the second row's second choice weighs nothing
    assert ops.moe_apply(x, weights, experts, run).flatten().tolist() == [10.0, 20.0, 30.0]
    assert calls == [(2, [10.0, 20.0]), (3, [30.0]), (7, [10.0, 30.0])]


def test_no_rows() -> None:
    weights, experts = ops.moe_route(torch.zeros(0, 4), 2)
    assert ops.moe_apply(torch.zeros(0, 8), weights, experts, lambda e, rows: rows).shape == (0, 8)


def test_terms_are_added_in_float32() -> None:
    """256 and eight times 0.125 in float16: added there one by one, the small ones would be lost."""
    x = torch.full((1, 1), 256.0, dtype=torch.float16)
    weights = torch.tensor([[1.0] + [0.125 / 256] * 8])
    got = ops.moe_apply(x, weights, torch.arange(9)[None], lambda e, rows: rows)
    assert got.dtype == torch.float16 and got.item() == 257.0


@pytest.mark.parametrize("row", [[torch.nan, 1, 2], [1, torch.inf, 2], [-torch.inf] * 3])
@pytest.mark.parametrize("renormalize", [True, False])
def test_an_undefined_row_stays_visible(row: list[float], renormalize: bool) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], row])
    for route in (lambda *a: ops.moe_route(a[0], a[1], renormalize=a[2]), reference):
        weights, experts = route(logits, 2, renormalize)
        assert weights[0].isfinite().all() and experts[0].tolist() == [0, 2]
        assert weights[1].isnan().all() and experts[1].tolist() == [0, 1]


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_out_of_range(k: int) -> None:
    for route in (lambda *a: ops.moe_route(a[0], a[1]), lambda *a: reference(*a, True)):
        with pytest.raises(RuntimeError, match=f"k is {k}, expected 1 to E = 3"):
            route(torch.zeros(2, 3), k)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(RuntimeError, match="moe_apply: weights and experts"):
        ops.moe_apply(
            torch.zeros(2, 3), torch.zeros(3, 1), torch.zeros(3, 1).long(), lambda e, r: r
        )
