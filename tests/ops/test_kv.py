"""Quantized keys and values beyond the table: published numbers, what is not finite, and what an error may be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble import ops
from nybble.ops.reference import IMPLEMENTATIONS

# The loaded kernels and the reference.
SIDES: dict[str, Callable[[str], Callable[..., Any]]] = {
    "kernels": lambda op: getattr(ops, op),
    "reference": IMPLEMENTATIONS.__getitem__,
}


def quantized(
    x: Tensor, bits: int, side: Callable[[str], Callable[..., Any]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and what they decode to, of all tokens."""
    *tokens, D = x.shape
    codes = torch.zeros(*tokens, D * bits // 8, dtype=torch.uint8)
    scales = torch.zeros(*tokens, D // 32, dtype=torch.float16)
    runs = torch.tensor([[0, tokens[0] * tokens[1]]])
    side("kv_quantize_")(codes, scales, x, runs, bits=bits)
    back = torch.zeros_like(x)
    side("kv_dequantize_")(back, codes, scales, runs, bits=bits)
    return codes, scales, back


def digest(t: Tensor) -> str:
    return hashlib.sha1(t.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", SIDES)
def test_numbers_written_down_with_the_format(name: str) -> None:
    side = SIDES[name]
    i = torch.arange(512, dtype=torch.float64)
    x = (2 * (0.37 * i).sin() + 0.01 * (i % 13)).half().view(1, 1, 8, 64)
    codes, scales, back = quantized(x, 4, side)
    assert codes.view(-1)[:8].tolist() == [0x99, 0x88, 0x98, 0x88, 0xFD, 0x55, 0x20, 0x56]
    assert (digest(codes), digest(scales)) == ("b6fb2ba51656c5b4", "536ba839c431aba9")
    assert torch.allclose(
        back.view(-1)[:4].float(), torch.tensor([-0.01221, 0.6279, 1.628, 1.803]), rtol=1e-3
    )
    codes, scales, back = quantized(x, 8, side)
    assert codes.view(-1)[:8].tolist() == [0x94, 0x91, 0x82, 0x84, 0x86, 0x8A, 0x7C, 0x7D]
    assert (digest(codes), digest(scales)) == ("1985788491e78610", "97da1a6568e6c6d7")
    assert torch.allclose(
        back.view(-1)[:4].float(), torch.tensor([0.00244, 0.7305, 1.372, 1.808]), rtol=1e-3
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_not_finite_has_the_codes_of_the_rule(bits: int) -> None:
    """Sums beyond the half range make a scale infinite and its half group NaN; NaN itself gets code 0."""
    x = torch.randn(1, 20, 1, 64).half()
    x[0, 1, 0, 7], x[0, 2, 0, 7], x[0, 3, 0, 8] = torch.nan, torch.inf, -torch.inf
    x[0, 4], x[0, 5, 0, ::2], x[0, 6] = 6e4, 3e3, torch.nan
    native, plain = (quantized(x, bits, side) for side in SIDES.values())
    assert torch.equal(native[0], plain[0])
    assert torch.equal(native[1].view(torch.int16), plain[1].view(torch.int16))
    assert torch.equal(native[2].nan_to_num(7.0), plain[2].nan_to_num(7.0))
    codes, scales, back = native
    assert scales[0, 4, 0, 0].isinf() and back[0, 4].isnan().all()
    assert codes[0, 6].unique().tolist() == [0] and scales[0, 6].unique().tolist() == [0.0]
    assert back[0, 7:].isfinite().all()


@pytest.mark.parametrize(("bits", "steps"), [(4, 1.01), (8, 1.1)])
def test_an_element_comes_back_within_a_step(bits: int, steps: float) -> None:
    """A code is at most one step off (half a step, and one where +max is cut to the last code); rotating back takes the
    mean of 32 errors. Eight bits leave more room for the half rounding of the ten sums."""
    x = torch.randn(4, 16, 4, 64).half()
    _, scales, back = quantized(x, bits, SIDES["kernels"])
    step = scales.unflatten(-1, (-1, 2)).float().amax(-1)
    assert ((x - back).float().abs().amax(-1, keepdim=True) <= steps * step + 32 * 2.0**-11).all()


def test_float8_keeps_every_bit_pattern() -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    codes = ops.fp8_encode_(torch.zeros(1 << 16, dtype=torch.uint8), every.view(torch.float16))
    assert torch.equal(codes.int(), (every.int() & 0xFFFF) >> 8)
    back = ops.fp8_decode_(torch.zeros(1 << 16, dtype=torch.float16), codes)
    assert torch.equal(back.view(torch.int16), every & -256)


VIEWS = {
    "rows-apart": lambda t: t[:, 0, 8:40],
    "columns-apart": lambda t: t[:, 1, ::2],
    "no-row-stride": lambda t: t[1:, ::2, :16],
}
IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "rms_norm_": lambda x: ops.rms_norm_(x, torch.ones(x.shape[-1]), 1e-5),
    "layer_norm_": lambda x: ops.layer_norm_(x, torch.ones(x.shape[-1]), None, 1e-5),
    "softcap_": lambda x: ops.softcap_(x, 1.0),
    "fp8_decode_": lambda x: ops.fp8_decode_(x, torch.full(x.shape, 60, dtype=torch.uint8)),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("op", IN_PLACE)
def test_a_view_is_written_and_its_surroundings_are_not(op: str, view: str) -> None:
    dtype = torch.float16 if op.startswith("fp8") else torch.float32
    whole = torch.randn(6, 4, 64).to(dtype)
    alone, before = VIEWS[view](whole).clone().contiguous(), whole.clone()
    IN_PLACE[op](alone)
    IN_PLACE[op](VIEWS[view](whole))
    torch.testing.assert_close(VIEWS[view](whole), alone)
    assert not torch.equal(VIEWS[view](before), alone)
    VIEWS[view](whole).copy_(VIEWS[view](before))
    assert torch.equal(whole, before)
