"""8-bit codes: what the table of cases cannot say."""

from __future__ import annotations

import pytest
import torch

from nybble import ops
from tests.cases import all_cases


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    """Codes cannot hold it, so the row's scale does, and a product with the row is NaN."""
    x = torch.randn(3, 70)
    x[1, 66] = value
    ones = torch.ones(70)
    for codes, scales in (ops.quantize_int8(x), ops.layer_norm_int8(x, ones, None, 1e-5)):
        assert scales[1].isnan() and scales[[0, 2]].isfinite().all()
        assert not codes[1].any() and codes[[0, 2]].any(-1).all()
        y = ops.int8_matmul(codes, scales, torch.ones(2, 70, dtype=torch.int8), torch.ones(2))
        assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_layer_in_8_bits_is_close_to_the_layer(dtype: torch.dtype) -> None:
    """Quantize the weight by rows and the input by tokens, multiply, and compare with the float layer."""
    x, weight, bias = torch.randn(9, 512).to(dtype), torch.randn(40, 512), torch.randn(40)
    w_codes, w_scales = ops.quantize_int8(weight)
    y = ops.int8_matmul(*ops.quantize_int8(x), w_codes, w_scales, bias, dtype=dtype)
    expected = x.float() @ weight.t() + bias
    error = (y.float() - expected).norm() / expected.norm()
    # Two roundings of a step of about max / 127 = 3.5 / 127, uniform: 0.0276 / sqrt(12) each.
    assert y.dtype == dtype and 0.004 < float(error) < 0.02


def test_the_norm_is_that_of_layer_norm() -> None:
    """A mean of 3 tells a layer norm from an RMS norm."""
    x, weight, bias = torch.randn(4, 96) + 3, torch.randn(96), torch.randn(96)
    codes, scales = ops.layer_norm_int8(x, weight, bias, 1e-6)
    y = torch.nn.functional.layer_norm(x, (96,), weight, bias, 1e-6)
    assert ((codes * scales[:, None] - y).abs() <= 0.51 * scales[:, None]).all()


@pytest.mark.parametrize(
    "op", ["int8_matmul", "decode_attention", "quantize_int8", "layer_norm_int8"]
)
def test_results_do_not_depend_on_the_number_of_threads(op: str) -> None:
    cases = [c for c in all_cases() if c.op == op]
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            answers.append([getattr(torch.ops.nybble, op)(*c.args) for c in cases])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*answers, strict=True):
        pairs = zip(one, three, strict=True) if isinstance(one, tuple) else [(one, three)]
        assert all(torch.equal(a, b) for a, b in pairs)
