"""What the knapsack promises: one answer a seed, no worse than its start, the best where there is time."""

from __future__ import annotations

import torch

from nybble import ops
from nybble.ops.reference import IMPLEMENTATIONS
from tests.cases.quantize import best_choice, slots


def test_knapsack_is_the_same_everywhere_and_never_worse_than_its_start() -> None:
    for seed in range(8):
        cost, loss, first = slots([4, 3, 5, 2])
        start = first[:-1]
        budget = int(cost[start].sum()) + seed
        cooling = torch.full((6,), 1e-3).double()
        options = (cost, loss, first, budget, cooling)
        choice = ops.anneal_knapsack(*options, steps=9, seed=seed)
        assert choice.tolist() == IMPLEMENTATIONS["anneal_knapsack"](*options, 9, seed).tolist()
        assert int(cost[start + choice].sum()) <= budget
        assert float(loss[start + choice].sum()) <= float(loss[start].sum())


def test_knapsack_finds_the_best() -> None:
    """Six slots, all combinations tried: an annealing slow enough misses the optimum hardly ever."""
    cooling = 1.0 * 0.98 ** torch.arange(600).double()
    for _ in range(5):
        cost, loss, first = slots([4, 4, 4, 4, 4, 4])
        budget = int(cost.sum()) // 5
        choice = ops.anneal_knapsack(cost, loss, first, budget, cooling, steps=200, seed=3)
        assert choice.tolist() == best_choice(cost, loss, first, budget)
