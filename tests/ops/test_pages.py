"""Paged caches against loops over tokens, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch

from nybble.ops import common_prefix, paged_runs, rotate_pages_


def test_runs_cover_exactly_the_tokens_asked_for() -> None:
    for _ in range(100):
        B, P, size = (int(n) for n in torch.randint(1, 5, (3,)))
        table = torch.randperm(B * P).view(B, P).int()
        ends = torch.randint(0, P * size + 1, (2, B)).sort(0).values
        runs = paged_runs(table, ends[0], ends[1], page_size=size)
        got = [t for begin, end in runs.tolist() for t in range(begin, end)]
        want = [
            int(table[b, t // size]) * size + t % size
            for b in range(B)
            for t in range(int(ends[0, b]), int(ends[1, b]))
        ]
        assert got == want


def test_runs_are_widened_within_their_page() -> None:
    table, begin, end = torch.tensor([[3, 1]]), torch.tensor([3]), torch.tensor([9])
    assert paged_runs(table, begin, end, page_size=8, align=4).tolist() == [[24, 32], [8, 12]]
    assert paged_runs(table, begin, end, page_size=6, align=4).tolist() == [[18, 24], [6, 10]]
    assert paged_runs(table, begin, begin, page_size=8, align=4).tolist() == []


def test_runs_refuse_what_the_table_has_no_room_for() -> None:
    table, one = torch.tensor([[3, 1]]), torch.tensor([1])
    for begin, end in ((one, 9 * one), (-one, one)):
        with pytest.raises(RuntimeError, match="expected tokens of 0 to 8"):
            paged_runs(table, begin, end, page_size=4)
    assert paged_runs(table, 9 * one, -one, page_size=4).tolist() == []  # no tokens at all
    for bad in ((table[0], one, one), (table, one[None], one[None]), (table.float(), one, one)):
        with pytest.raises(RuntimeError, match="paged_runs"):
            paged_runs(*bad, page_size=4)
    with pytest.raises(RuntimeError, match="page_size is 0"):
        paged_runs(table, one, one, page_size=0)


@pytest.mark.parametrize("order", [[], [2], [0, 3], [4, 0, 3, 1], [1, 1], [0, 1, 0]])
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.float32, torch.bool])
def test_pages_change_places_one_after_the_other(order: list[int], dtype: torch.dtype) -> None:
    pages = torch.randint(0, 2, (5, 3, 7)).to(dtype)
    want = list(pages.clone())
    if order:
        kept = want[order[0]]
        for to, source in itertools.pairwise(order):
            want[to] = want[source]
        want[order[-1]] = kept
    for number in (torch.int32, torch.int64):
        got = rotate_pages_(pages.clone(), torch.tensor(order, dtype=number))
        assert torch.equal(got, torch.stack(want))


def test_pages_outside_are_refused_and_nothing_moves() -> None:
    pages = torch.arange(12).view(4, 3)
    for bad in (torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0.0]), torch.tensor(1)):
        with pytest.raises(RuntimeError, match="rotate_pages_"):
            rotate_pages_(pages, bad)
    assert torch.equal(pages, torch.arange(12).view(4, 3))


def test_common_prefix_against_a_loop() -> None:
    for _ in range(100):
        a, b = (torch.randint(0, 2, (int(torch.randint(0, 6, ())),)) for _ in range(2))
        n = 0
        while n < min(len(a), len(b)) and a[n] == b[n]:
            n += 1
        assert common_prefix(a, b) == n
    for bad in ((torch.ones(2), torch.ones(2).int()), (torch.ones(1, 2), torch.ones(2))):
        with pytest.raises(RuntimeError, match="common_prefix"):
            common_prefix(*bad)
