"""``lora_add_`` against the dense matrix that the adapter stands for."""

from __future__ import annotations

import pytest
import torch

from nybble import ops


@pytest.mark.parametrize("r", [1, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_against_the_dense_sum(r: int, dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 5, 24), torch.randn(40, 24)
    a, b = torch.randn(r, 24).to(dtype), torch.randn(40, r).to(dtype)
    y = ops.matmul(x, w)
    got = ops.lora_add_(y, x, a, b, scale=0.5)
    want = x.double() @ (w.double() + 0.5 * b.double() @ a.double()).T
    assert got is y
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_what_does_not_fit() -> None:
    x, a, b = torch.ones(2, 3), torch.ones(1, 3), torch.ones(4, 1)
    for y in (torch.ones(2, 5), torch.ones(1, 4), torch.ones(2, 4).half()):
        with pytest.raises(RuntimeError, match="lora_add_: y is"):
            ops.lora_add_(y, x, a, b)
    with pytest.raises(RuntimeError):
        ops.lora_add_(torch.ones(2, 4), x, torch.ones(1, 2), b)
