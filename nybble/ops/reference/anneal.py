"""Meaning of ``anneal_knapsack``, down to its random numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nybble.ops.reference import check

_MASK = (1 << 64) - 1


def anneal_knapsack(
    cost: Tensor,
    loss: Tensor,
    first: Tensor,
    budget: int,
    temperature: Tensor,
    steps: int,
    seed: int,
) -> Tensor:
    """A random option of a random slot, taken by Metropolis' rule within the budget; the best state visited."""
    _check(cost, loss, first, temperature, steps)
    bounds, costs, losses = first.tolist(), cost.tolist(), loss.tolist()
    S = len(bounds) - 1
    state, random = [0] * S, _splitmix64(seed)
    spent = sum(costs[b] for b in bounds[:S])
    total = 0.0
    for b in bounds[:S]:
        total += losses[b]
    best, lowest = list(state), total if spent <= budget else math.inf
    for level in temperature.tolist() if S else []:
        for _ in range(steps):
            draw = next(random)
            slot = (draw >> 32) * S >> 32
            start, stop = bounds[slot : slot + 2]
            option = (draw & 0xFFFFFFFF) * (stop - start) >> 32
            now, then = start + state[slot], start + option
            changed, rise = spent - costs[now] + costs[then], losses[then] - losses[now]
            if spent > budget:
                take = changed < spent
            else:
                take = changed <= budget and (
                    rise < 0 or (next(random) >> 11) * 2.0**-53 < math.exp(-rise / level)
                )
            if take:
                state[slot], spent, total = option, changed, total + rise
                if spent <= budget and total < lowest:
                    best, lowest = list(state), total
    answer = best if lowest < math.inf else state
    return torch.tensor(answer, dtype=torch.int64, device=cost.device)


def _splitmix64(seed: int) -> Iterator[int]:
    state = seed & _MASK
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        yield z ^ (z >> 31)


def _check(cost: Tensor, loss: Tensor, first: Tensor, temperature: Tensor, steps: int) -> None:
    op = "anneal_knapsack"
    check.dtype(op, torch.int64, cost=cost, first=first)
    check.dtype(op, torch.float64, loss=loss, temperature=temperature)
    check.rank(op, "cost", cost, "O", 1)
    check.rank(op, "first", first, "S + 1", 1)
    check.rank(op, "temperature", temperature, "L", 1)
    options, S = cost.shape[0], first.shape[0] - 1
    check.shape(op, "loss", loss, "O", options)
    check.require(S >= 0, f"{op}: first is empty, expected one number more than there are slots")
    rising = bool((first.diff() > 0).all())
    check.require(
        rising, f"{op}: first does not rise from slot to slot: every slot needs an option"
    )
    ends = (int(first[0]), int(first[-1]))
    check.require(
        ends == (0, options),
        f"{op}: first goes from {ends[0]} to {ends[1]}, expected 0 to {options}",
    )
    check.within(op, "cost", cost, 0, (2**63 - 1) // max(S, 1) + 1)
    check.require(bool(loss.isfinite().all()), f"{op}: loss has numbers that are not finite")
    check.require(bool((temperature > 0).all()), f"{op}: temperature must be more than 0")
    proposals = steps * temperature.shape[0]
    check.require(
        steps >= 0 and proposals <= 1 << 30,
        f"{op}: {proposals} proposals together, expected 0 to 2^30",
    )
