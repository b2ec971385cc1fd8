"""Rounding to nearest: small error where the numbers fit the grid, bounded elsewhere."""

from __future__ import annotations

import pytest
import torch

from nybble.quantize.job import quantize_linear
from nybble.quantize.plan import NOISE, WIDTHS
from nybble.quantize.rtn import fit_group, scale_of


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_matrix_on_the_grid_loses_no_more_than_any_other(bits: int) -> None:
    half = 1 << (bits - 1)
    maximum = torch.tensor(0.0625, dtype=torch.float16)
    index = torch.randint(0, 16, (64,))
    index[0] = 15  # the group's largest scale is in use
    codes = torch.randint(0, 2 * half, (32, 64))
    codes[0], codes[1] = 0, 2 * half - 1  # every column reaches both ends
    weight = (codes - half) * scale_of(index, maximum)
    fit = fit_group(weight, bits)
    again = (fit.codes.float() - half) * scale_of(fit.index, fit.maximum)
    # The search tries a ladder of maxima, so it may miss the grid by a little, never by much.
    assert float((again - weight).square().sum()) <= 1.05 * NOISE[bits] * float(
        weight.square().sum()
    )


@pytest.mark.parametrize("bits", WIDTHS)
def test_noise_of_normal_weights(bits: int) -> None:
    """The plan's table of errors is what the rounding reaches."""
    weight = torch.randn(128, 512)
    fit = fit_group(weight, bits)
    again = (fit.codes.float() - (1 << (bits - 1))) * scale_of(fit.index, fit.maximum)
    assert float((again - weight).square().mean()) == pytest.approx(NOISE[bits], rel=0.06)


@pytest.mark.parametrize("bits", WIDTHS)
def test_no_weight_inside_the_range_is_off_by_more_than_half_a_step(bits: int) -> None:
    weight = torch.randn(64, 96) * torch.rand(96) * 0.1
    fit = fit_group(weight, bits)
    half, scale = 1 << (bits - 1), scale_of(fit.index, fit.maximum)
    wrong = ((fit.codes.float() - half) * scale - weight).abs()
    inside = (weight >= -half * scale) & (weight <= (half - 1) * scale)
    assert bool((wrong <= scale * 0.5001)[inside].all())
    assert int(fit.codes.max()) < 2 * half and int(fit.index.max()) < 16


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e4])
def test_constant_and_extreme_columns(value: float) -> None:
    fit = fit_group(torch.full((32, 32), value), 4)
    again = (fit.codes.float() - 8) * scale_of(fit.index, fit.maximum)
    assert bool(torch.isfinite(again).all())
    assert float((again - value).abs().max()) <= max(0.05 * value, 1e-6)


def test_linear_keeps_order_padding_and_bias() -> None:
    """40 outputs are stored as 64; rows lie in the given order; the error is of what is stored."""
    weight, order, bias = torch.randn(40, 96), torch.randperm(96), torch.randn(40)
    linear, error = quantize_linear(weight, order, [(6, 64), (4, 32)], bias)
    linear.validate()
    packed = linear.to_packed()
    assert (linear.K, linear.N, packed.N) == (96, 64, 64)
    assert linear.bias is not None and torch.equal(linear.bias[:40], bias.half())
    bits, _, rows = linear.layout()
    assert (bits.tolist(), rows.tolist()) == ([6, 4], [64, 32])
    assert torch.equal(linear.q_invperm.long(), torch.argsort(order))
    assert 0.03 < error < 0.12
