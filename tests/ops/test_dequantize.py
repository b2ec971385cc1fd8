"""What ``dequantize`` refuses, on the kernel and on the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nybble import ops
from nybble.ops import _native
from nybble.ops.reference import IMPLEMENTATIONS
from tests.cases.qmatmul import random_packed

_native.ensure_loaded()
SERVING = [torch.ops.nybble.dequantize, IMPLEMENTATIONS["dequantize"]]


@pytest.mark.parametrize("dequantize", SERVING, ids=["op", "reference"])
@pytest.mark.parametrize(
    ("place", "row", "text"),
    [(3, 7, "perm holds"), (3, -1, "perm holds"), (3, 64, "perm"), (40, -2, "perm")],
)
def test_every_row_once(dequantize: Callable[..., Any], place: int, row: int, text: str) -> None:
    """A row twice would be written by two threads, a row never would be whatever memory held."""
    m = random_packed(64, 16, [4], shuffled=True)
    assert m.perm is not None
    perm = m.perm.clone()
    assert perm[place] != row
    perm[place] = row
    with pytest.raises(RuntimeError, match=text):
        dequantize(m.weight, m.scales, m.zeros, perm, m.blocks, m.K, m.N, torch.float32)


@pytest.mark.parametrize("dequantize", SERVING, ids=["op", "reference"])
def test_more_rows_than_blocks(dequantize: Callable[..., Any]) -> None:
    m = random_packed(64, 16, [4])
    for K in (65, 2**40, -1):
        with pytest.raises(RuntimeError, match="K is"):
            dequantize(m.weight, m.scales, m.zeros, m.perm, m.blocks, K, m.N, torch.float32)


def test_it_is_the_matrix_of_the_product() -> None:
    m = random_packed(96, 40, [5, 3, 2], zeros=True, shuffled=True)
    W = ops.dequantize(m)
    torch.testing.assert_close(ops.qmatmul(torch.eye(96), m, act_bits=32), W)


@pytest.mark.parametrize("gate", [None, "silu", "gelu", "gelu_tanh"])
def test_a_product_by_way_of_numbers_is_the_product(gate: str | None) -> None:
    """What many rows on a GPU take; the numbers here are float32, so that both ways agree closely."""
    from nybble.ops.qmatmul import of_many_rows

    m = random_packed(96, 40, [4, 3], zeros=True, shuffled=True, bias=torch.float32)
    x, add = torch.randn(2, 9, 192 if gate else 96), torch.randn(2, 9, 40)
    norm = None if gate else (torch.randn(96), 1e-5)
    y = of_many_rows(x, m, m.bias, norm=norm, gate=gate, add=add)
    expected = ops.qmatmul(x, m, act_bits=32, norm=norm, gate=gate, add=add)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_product_by_way_of_numbers_refuses_what_the_product_refuses() -> None:
    from nybble.ops.qmatmul import of_many_rows

    m, x = random_packed(64, 16, [4]), torch.randn(20, 64)
    with pytest.raises(RuntimeError, match="norm and gate"):
        of_many_rows(x, m, None, norm=(torch.ones(64), 1e-5), gate="silu", add=None)
    with pytest.raises(RuntimeError, match="add is"):
        of_many_rows(x, m, None, norm=None, gate=None, add=torch.randn(16))
