"""Collectives over shards of one process."""

from __future__ import annotations

import pytest
import torch

from nybble import ops


def test_columns_of_a_split_product() -> None:
    """Columns over three uneven shards, gathered, are the product of the whole matrix."""
    x, w = torch.randn(4, 16), torch.randn(48, 16)
    inputs = [torch.empty(4, 16) for _ in range(3)]
    ops.broadcast_(inputs, x)
    parts = [ops.matmul(i, part) for i, part in zip(inputs, w.split([8, 30, 10]), strict=True)]
    assert torch.equal(ops.gather_columns_(torch.empty(4, 48), parts), ops.matmul(x, w))


def test_rows_of_a_split_product() -> None:
    """Rows over shards give terms; their sum, on every shard, is the product of the whole matrix."""
    x, w = torch.randn(4, 48), torch.randn(8, 48)
    terms = [
        ops.matmul(a, b.contiguous()) for a, b in zip(x.split(16, 1), w.split(16, 1), strict=True)
    ]
    ops.all_reduce_(terms)
    assert all(torch.equal(t, terms[0]) for t in terms)
    assert (terms[0] - x.double() @ w.double().T).abs().max() < 1e-4


def test_a_sum_is_rounded_in_the_lists_order() -> None:
    terms = [torch.tensor([v], dtype=torch.float16) for v in (2048.0, 1.0, 1.0)]
    ops.all_reduce_(terms)
    assert [t.item() for t in terms] == [2048.0] * 3


def test_a_target_that_is_the_source() -> None:
    x = torch.ones(3)
    ops.broadcast_([x, torch.empty(3)], x)
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_nothing_to_do() -> None:
    ops.broadcast_([], torch.ones(2))
    ops.all_reduce_([])


def test_what_does_not_fit() -> None:
    with pytest.raises(RuntimeError, match=r"broadcast_: targets\[1\]"):
        ops.broadcast_([torch.ones(2), torch.ones(3)], torch.ones(2))
    with pytest.raises(RuntimeError, match="add up to N"):
        ops.gather_columns_(torch.ones(2, 4), [torch.ones(2, 3)])
    with pytest.raises(RuntimeError, match=r"gather_columns_: parts\[0\]"):
        ops.gather_columns_(torch.ones(2, 4), [torch.ones(1, 4)])
    with pytest.raises(RuntimeError, match=r"all_reduce_: tensors\[1\]"):
        ops.all_reduce_([torch.ones(2), torch.ones(2).half()])
