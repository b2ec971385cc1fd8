"""What ``dequantize`` refuses, on the kernel and on the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nybble import ops
from nybble.ops import _native
from nybble.ops.reference import IMPLEMENTATIONS
from tests.cases.core import random_packed

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
