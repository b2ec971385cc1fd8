"""``anneal_knapsack``: which option to take in every slot when the costs together have a limit."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_anneal_knapsack = torch.ops.nybble.anneal_knapsack.default


def anneal_knapsack(
    cost: Tensor,
    loss: Tensor,
    first: Tensor,
    budget: int,
    temperature: Tensor,
    *,
    steps: int,
    seed: int,
) -> Tensor:
    """The multiple-choice knapsack by simulated annealing: little loss, one option a slot, costs within the budget.

    Starts from the first option of every slot. At each temperature, ``steps`` times, a random option of a random slot is
    taken if the cost stays within the budget and the loss falls, or rises by ``d`` with probability
    ``exp(-d / temperature)``. While the cost is over the budget, every move that lowers it is taken.

    Args:
        cost: int64 ``[O]``, 0 to (2^63 - 1) / S.
        loss: float64 ``[O]``, finite.
        first: int64 ``[S + 1]``, rising from 0 to O: slot ``s`` has the options ``first[s]`` to ``first[s + 1] - 1``.
        budget: most that the chosen costs may add up to.
        temperature: float64 ``[L]``, more than 0, usually falling.
        steps: proposals at each temperature; ``steps * L`` is at most 2^30.
        seed: any int64; the same seed gives the same answer.

    Returns int64 ``[S]``, the index of each choice within its slot: the best state visited within the budget, or, where
    there was none, the last state. Raises ``RuntimeError`` naming what does not fit; on a GPU numbers that do not fit give
    -1 everywhere. One proposal follows another, which a CPU does faster.

    >>> cost, loss = torch.tensor([10, 20, 30] * 2), torch.tensor([0.5, 0.1, 0.01] * 2).double()
    >>> cooling = 2.0 * 0.9 ** torch.arange(100).double()
    >>> anneal_knapsack(cost, loss, torch.tensor([0, 3, 6]), 40, cooling, steps=50, seed=1)
    tensor([1, 1])
    """
    ensure_loaded()
    choice: Tensor = _anneal_knapsack(cost, loss, first, budget, temperature, steps, seed)
    return choice


@register_fake("nybble::anneal_knapsack")
def _(
    cost: Tensor,
    loss: Tensor,
    first: Tensor,
    budget: int,
    temperature: Tensor,
    steps: int,
    seed: int,
) -> Tensor:
    return cost.new_empty(first.shape[0] - 1)
