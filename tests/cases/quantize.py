"""Rounding to a grid and GPTQ, written out a number at a time in float64; the knapsack by trying every combination."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tests.cases.base import F32, Case


def plain_code(ratio: float, zero: int, max_code: int) -> int:
    """``clamp(round(ratio) + zero)``, ties to even, NaN to the last code."""
    if ratio != ratio:
        return max_code
    return int(min(max(np.rint(ratio) + zero, 0), max_code))


def plain_value(code: int, scale: float, zero: int) -> float:
    """``half((code - zero) * half(scale))``."""
    return float(np.float16(np.float64(code - zero) * np.float64(np.float16(scale))))


def quantize_columns_cases() -> Iterator[Case]:
    for bits, R, N in ((2, 1, 4), (3, 5, 33), (4, 40, 96), (5, 33, 31), (8, 3, 130)):
        x = torch.randn(R, N)
        yield columns_case(f"w{bits}-{R}x{N}", x, torch.rand(N) * 0.2 + 0.01, bits)
    for R, N in ((0, 8), (4, 0)):
        yield columns_case(f"empty-{R}x{N}", torch.randn(R, N), torch.rand(N), 4)
    yield columns_case("strided", torch.randn(9, 80)[:, 7:60], torch.rand(106)[::2] + 0.1, 4)
    yield columns_case("transposed", torch.randn(20, 6).T, torch.rand(20) + 0.1, 4)
    # What real weights hardly show: ties, both ends, divisions by zero, what is not finite.
    odd = torch.tensor([[0.25, 0.75, -0.25, 9.0, -9.0, 0.0, 1.0, -1.0, torch.nan, torch.inf]])
    scales = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5])
    yield columns_case("odd", odd, scales, 4)
    # Scales below the smallest normal float16 number keep their digits.
    small = torch.tensor([6e-8, 1e-6, 3e-5, 5.9e-8])
    yield columns_case("small-scales", torch.randn(6, 4) * small * 4, small, 4)
    yield columns_case("one-sided", torch.randn(6, 5), torch.rand(5) + 0.1, 4, zero=0)


def columns_case(name: str, x: Tensor, scales: Tensor, bits: int, zero: int | None = None) -> Case:
    last = 2**bits - 1
    z = 2 ** (bits - 1) if zero is None else zero
    codes = torch.zeros(x.shape, dtype=torch.int64)
    values = torch.zeros(x.shape, dtype=torch.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = x.numpy() / scales.numpy()  # in float32: what is a tie is decided there
    for r, n in itertools.product(range(x.shape[0]), range(x.shape[1])):
        codes[r, n] = plain_code(float(ratios[r, n]), z, last)
        values[r, n] = plain_value(int(codes[r, n]), float(scales[n]), z)
    return Case("quantize_columns", name, (x, scales, z, last), (codes, values), (0.0, 0.0))


def quantize_error_cases() -> Iterator[Case]:
    for norm in (2.0, 3.5, 1.0, 2.4, 0.5):
        for bits, R, N, P in ((4, 32, 64, 9), (2, 5, 3, 1), (8, 130, 70, 3)):
            x, scales, factors = torch.randn(R, N), torch.rand(N) * 0.2 + 0.05, torch.rand(P) + 0.5
            yield error_case(f"w{bits}-{R}x{N}-p{P}-norm{norm}", x, scales, factors, bits, norm)
    for R, N, P in ((0, 8, 2), (4, 0, 2), (4, 8, 0)):
        yield error_case(
            f"empty-{R}x{N}-p{P}", torch.randn(R, N), torch.rand(N), torch.rand(P), 4, 3.5
        )
    x, factors = torch.randn(9, 80)[:, 7:60], torch.rand(8)[::2] + 0.5
    yield error_case("strided", x, torch.rand(106)[::2] + 0.1, factors, 4, 3.5)
    nothing = torch.tensor([[0.0, 0.0, 1.0, -2.0]]).repeat(3, 1)
    yield error_case("no-scale", nothing, torch.tensor([0.0, 0.5, 0.0, 0.0]), factors, 4, 3.5)


def error_case(
    name: str, x: Tensor, scales: Tensor, factors: Tensor, bits: int, norm: float
) -> Case:
    """Error: that of one difference, of its power, and of a float32 sum of R of them."""
    zero, last = 2 ** (bits - 1), 2**bits - 1
    s = (scales.double() * factors.double()[:, None])[:, None]  # [P, 1, N]
    steps = (x.double() / s).round().nan_to_num(nan=last - zero).clamp(-zero, last - zero)
    e = (steps * s - x.double()).abs()
    # Next to a tie the neighbour may be taken, which is farther by the rounding of x / s only.
    slack = 4 * F32 * (x.double().abs() + steps.abs() * s)
    spread = ((e + slack) ** norm - (e - slack).clamp_min(0) ** norm).sum(1)
    expected = (e**norm).sum(1)
    bound = spread + (8 * norm + 8 + x.shape[0]) * F32 * expected
    return Case("quantize_error", name, (x, scales, factors, zero, last, norm), expected, bound)


def gptq_group_cases() -> Iterator[Case]:
    shapes = [
        # bits, T, R, N
        (4, 40, 8, 24),
        (2, 64, 64, 8),
        (3, 50, 17, 37),
        (8, 33, 15, 4),
        (4, 150, 140, 3),
        (4, 420, 6, 9),
        (4, 300, 20, 135),
        (4, 6, 0, 5),
        (4, 5, 3, 0),
    ]
    for bits, T, R, N in shapes:
        yield gptq_case(bits, T, R, N)


def gptq_case(bits: int, T: int, R: int, N: int) -> Case:
    """Drawn again until no number lies so near a tie that float32 could fall on its other side."""
    near = 1.0
    while near > 0.4999:
        rows = torch.randn(2 * T, T, dtype=torch.float64)
        U = torch.linalg.cholesky(torch.linalg.inv(rows.T @ rows), upper=True).float()
        weight, scales = torch.randn(T, N), torch.rand(N) * 0.1 + 2.0 ** (1 - bits)
        answer, near = plain_gptq(weight, U, scales, bits, R)
    # A weight of size 4 or so is rounded at most T times on its way; U is near its diagonal here, so errors hardly grow.
    size = (T + 16) * F32 * 4.0
    bound = (size, 0.0, size / float(U.diagonal().min()))
    args = (weight, torch.zeros(R, N, dtype=torch.uint8), torch.zeros(R, N), U, scales)
    grid = (2 ** (bits - 1), 2**bits - 1)
    name = f"w{bits}-{T}x{N}-r{R}"
    return Case("gptq_group_", name, (*args, *grid), answer, bound, written=(0, 1, 2))


def plain_gptq(
    weight: Tensor, U: Tensor, scales: Tensor, bits: int, R: int
) -> tuple[tuple[Tensor, Tensor, Tensor], float]:
    """Weight, codes and error in float64, and how near to a tie (0.5) the nearest number came."""
    zero, last = 2 ** (bits - 1), 2**bits - 1
    w, u, N = weight.double(), U.double(), weight.shape[1]
    codes = torch.zeros(R, N, dtype=torch.int64)
    error = torch.zeros(R, N, dtype=torch.float64)
    near = 0.0
    for r in range(R):
        for n in range(N):
            ratio = float(w[r, n] / scales[n].double())
            if -zero <= ratio <= last - zero:
                near = max(near, abs(ratio - round(ratio)))
            codes[r, n] = plain_code(ratio, zero, last)
            value = plain_value(int(codes[r, n]), float(scales[n]), zero)
            error[r, n] = (w[r, n] - value) / u[r, r]
            w[r, n] = value
        w[r + 1 :] -= u[r, r + 1 :, None] * error[r]
    return (w, codes, error), near


def anneal_knapsack_cases() -> Iterator[Case]:
    cooling = 2.0 * 0.9 ** torch.arange(120).double()
    for counts, share in (([3, 1, 4], 0.6), ([2, 2, 2, 2, 2], 0.3), ([5], 0.5), ([1, 1], 1.0)):
        cost, loss, first = slots(counts)
        cheapest, dearest = (
            sum(int(f(cost[a:b])) for a, b in itertools.pairwise(first)) for f in (min, max)
        )
        budget = cheapest + int(share * (dearest - cheapest))
        args = (cost, loss, first, budget, cooling, 40, 7)
        answer = torch.tensor(best_choice(cost, loss, first, budget))
        yield Case("anneal_knapsack", f"{counts}-{share}", args, answer)
        # Nothing fits: down to the cheapest option of every slot.
        low = [int(cost[a:b].argmin()) for a, b in itertools.pairwise(first.tolist())]
        args = (cost, loss, first, cheapest - 1, cooling, 40, 7)
        yield Case("anneal_knapsack", f"{counts}-too-dear", args, torch.tensor(low))
    # From a start over the budget no single move leads below it.
    cost, loss = torch.tensor([50, 10] * 4), torch.tensor([0.0, 1.0] * 4).double()
    args = (cost, loss, torch.arange(0, 10, 2), 40, cooling, 40, 7)
    yield Case("anneal_knapsack", "start-over-budget", args, torch.ones(4, dtype=torch.int64))
    args = (cost, loss, torch.arange(0, 10, 2), 200, cooling[:0], 40, 7)
    yield Case("anneal_knapsack", "no-levels", args, torch.zeros(4, dtype=torch.int64))
    none = torch.zeros(0, dtype=torch.int64)
    args = (none, none.double(), torch.zeros(1, dtype=torch.int64), 5, cooling, 3, 7)
    yield Case("anneal_knapsack", "no-slots", args, none)


def slots(counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Random options, dearer ones with less loss, in random order."""
    cost = torch.randperm(50 * sum(counts))[: sum(counts)]
    loss = torch.rand(sum(counts)).double() / (cost + 10)
    return cost, loss, torch.tensor([0, *counts]).cumsum(0)


def best_choice(cost: Tensor, loss: Tensor, first: Tensor, budget: int) -> list[int]:
    """Least loss within the budget among all combinations."""
    bounds = list(itertools.pairwise(first.tolist()))
    best, least = [0] * len(bounds), float("inf")
    for choice in itertools.product(*(range(b - a) for a, b in bounds)):
        at = [a + c for (a, _), c in zip(bounds, choice, strict=True)]
        if int(cost[at].sum()) <= budget and float(loss[at].sum()) < least:
            best, least = list(choice), float(loss[at].sum())
    return best
