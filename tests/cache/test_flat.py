"""The flat cache holds what was appended, at the place the lengths say."""

from __future__ import annotations

import pytest
import torch

from nybble.cache import FlatCache
from nybble.errors import RequestError
from tests.kv import append


def make(batch: int = 3, capacity: int = 8) -> FlatCache:
    return FlatCache(layers=2, batch=batch, capacity=capacity, kv_heads=2, head_dim=4)


def add(cache: FlatCache, T: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of random keys and values through both layers; returns layer 0's."""
    k, v = torch.randn(2, cache.batch, T, 2, 4)
    append(cache, 0, k, v)
    append(cache, 1, -k, -v)
    cache.advance(T)
    return k, v


def test_rows_of_one_length() -> None:
    cache = make()
    first, _ = add(cache, 3)
    k, v = torch.randn(2, 3, 2, 2, 4)
    keys, values, lengths = append(cache, 0, k, v)
    assert torch.equal(keys, torch.cat([first, k], 1)) and torch.equal(values[:, 3:], v)
    assert lengths.tolist() == [5] * 3 and cache.lengths.tolist() == [3] * 3  # until advance


def test_rows_of_different_lengths() -> None:
    cache = make()
    held = [add(cache.rows(row, row + 1), n)[0] for row, n in enumerate((1, 4, 2))]
    assert cache.lengths.tolist() == [1, 4, 2]
    k, v = torch.randn(2, 3, 2, 2, 4)
    keys, _, lengths = append(cache, 1, k, v)
    assert lengths.tolist() == [3, 6, 4] and keys.shape == (3, 6, 2, 4)
    for row, n in enumerate((1, 4, 2)):
        assert torch.equal(keys[row, : n + 2], torch.cat([-held[row][0], k[row]]))


def test_a_view_sees_the_whole_and_the_whole_the_view() -> None:
    """A step that a view planned before the lengths changed elsewhere must not be used again."""
    cache = make(batch=2)
    view = cache.rows(1, 2)
    add(view, 1)
    add(cache, 1)
    assert view.lengths.tolist() == [2]
    k = torch.randn(1, 1, 2, 4)
    keys, _, lengths = append(view, 0, k, k)
    assert lengths.tolist() == [3] and torch.equal(keys[:, 2:], k)


def test_a_failed_step_can_be_run_again() -> None:
    cache = make()
    k = torch.randn(3, 2, 2, 4)
    append(cache, 0, torch.zeros_like(k), k)
    keys, _, lengths = append(cache, 0, k, k)
    assert torch.equal(keys, k) and lengths.tolist() == [2] * 3


def test_truncate_and_copy_row() -> None:
    cache = make()
    k, _ = add(cache, 4)
    cache.truncate(0, 2)
    cache.copy_row(0, 2)
    assert cache.lengths.tolist() == [2, 4, 2]
    new = torch.randn(3, 1, 2, 4)
    keys, _, lengths = append(cache, 0, new, new)
    assert lengths.tolist() == [3, 5, 3]
    assert torch.equal(keys[2, :3], torch.cat([k[0, :2], new[2]]))
    with pytest.raises(RequestError, match="cannot truncate row 1 to 5 tokens, it holds 4"):
        cache.truncate(1, 5)


def test_what_does_not_fit_is_refused() -> None:
    cache = make(capacity=4)
    add(cache, 3)
    k = torch.zeros(3, 2, 2, 4)
    with pytest.raises(RequestError, match="5 tokens in a sequence, but the capacity is 4"):
        append(cache, 0, k, k)
    with pytest.raises(RequestError, match="rows 2 to 4"):
        cache.rows(2, 4)
    with pytest.raises(RequestError, match="no row 3"):
        cache.copy_row(0, 3)
    with pytest.raises(RequestError, match="batch is 0"):
        make(batch=0)
