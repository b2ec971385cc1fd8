"""What follows from theory and holds for any numbers: GPTQ's loss, its groups, powers of errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nybble import ops


def problem(K: int, N: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, Hessian, U and scales of a layer whose inputs are strongly related."""
    x = torch.randn(4 * K, K) @ torch.randn(K, K)
    hessian = (x.T @ x).double() / K
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(K)
    U = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).float()
    return torch.randn(K, N), hessian, U, torch.rand(N) * 0.1 + 0.2


def gptq(weight: Tensor, U: Tensor, scales: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The whole matrix, a group at a time: values, codes, errors."""
    w, error = weight.clone(), torch.zeros_like(weight)
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    for a in range(0, len(w), group):
        rows = slice(a, a + group)
        ops.gptq_group_(w[a:], codes[rows], error[rows], U[a:, a:], scales, zero=8, max_code=15)
    return w, codes, error


def test_gptq_beats_rounding_and_knows_its_loss() -> None:
    weight, hessian, U, scales = problem(96, 40)
    got, codes, error = gptq(weight, U, scales, 32)
    _, rounded = ops.quantize_columns(weight, scales, zero=8, max_code=15)

    def loss(values: Tensor) -> float:
        change = (values - weight).double()
        return float((change.T @ hessian @ change).trace())

    assert loss(got) < 0.7 * loss(rounded)
    assert float(error.double().square().sum()) == pytest.approx(loss(got), rel=1e-3)
    assert torch.allclose(got, (codes.float() - 8) * scales.half().float(), rtol=2.0**-11, atol=0)


@pytest.mark.parametrize("group", [1, 32, 130])
def test_groups_do_not_change_gptq(group: int) -> None:
    """130 rows are more than the kernel takes at once, and 37 columns are no whole tile."""
    weight, _, U, scales = problem(130, 37)
    whole, parts = gptq(weight, U, scales, 130), gptq(weight, U, scales, group)
    assert (whole[1] != parts[1]).float().mean() < 0.01  # sums in another order may cross a tie
    assert (whole[0] - parts[0]).abs().mean() < 0.01 * scales.mean()


def test_gptq_writes_where_it_should() -> None:
    weight, _, U, scales = problem(40, 11)
    around = [torch.full((60, 30), 7.0) for _ in range(3)]
    big_weight, big_error, big_codes = around[0], around[1], around[2].to(torch.uint8)
    w, codes, error = big_weight[10:50, 5:16], big_codes[10:20, 5:16], big_error[10:20, 5:16]
    w.copy_(weight)
    ops.gptq_group_(w, codes, error, U, scales, zero=8, max_code=15)
    alone = weight.clone(), torch.zeros(10, 11, dtype=torch.uint8), torch.zeros(10, 11)
    ops.gptq_group_(*alone, U, scales, zero=8, max_code=15)
    for view, own in zip((w, codes, error), alone, strict=True):
        assert torch.equal(view, own)
        view.fill_(7)
    for whole in (big_weight, big_codes, big_error):
        assert bool((whole == 7).all())


def test_results_do_not_depend_on_threads() -> None:
    weight, _, U, scales = problem(140, 333)
    factors = torch.linspace(0.7, 1.2, 5)
    answers, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            errors = ops.quantize_error(weight, scales, factors, zero=8, max_code=15, norm=2.4)
            answers.append([*gptq(weight, U, scales, 140), errors])
    finally:
        torch.set_num_threads(threads)
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("norm", [0.25, 1.0, 2.0, 3.5, 4.0])
def test_powers_from_the_smallest_to_the_largest(norm: float) -> None:
    """With zero = 0 a negative number has code 0, so that its error is its size."""
    size = torch.logspace(-37, 38, 4001, dtype=torch.float64)
    expected = size.float().double() ** norm
    size, expected = (t[(expected > 1e-36) & (expected < 1e38)] for t in (size.float(), expected))
    one = torch.ones(1)
    got = ops.quantize_error(
        -size[None], torch.ones_like(size), one, zero=0, max_code=15, norm=norm
    )
    assert float((got[0].double() / expected - 1).abs().max()) < 1e-6


def test_powers_of_what_is_not_finite() -> None:
    x = torch.tensor([[0.0, -torch.inf, torch.nan, -1e38]])
    got = ops.quantize_error(x, torch.ones(4), torch.ones(1), zero=0, max_code=15, norm=3.5)
    assert (
        got[0, 0] == 0 and got[0, 1] == torch.inf and got[0, 2].isnan() and got[0, 3] == torch.inf
    )
