"""The old caches: recorded calls, and calls that must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nybble.compat import exllamav2_ext as ext
from tests.compat import recorded

ABSENT = torch.empty((1, 1), device="meta")


def test_recorded_calls(data: Path) -> None:
    recorded.check(data, "cache")


def half(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.float16)


def byte(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def to_q(page_size: int) -> list[Any]:
    """A Q6 cache of four pages or rows of eight tokens."""
    lengths, table = torch.tensor([3, 9]).int(), torch.tensor([[1, 0], [2, 3]]).int()
    k = [half(4, 8, 2, 64), byte(4, 8, 2, 64), half(4, 8, 2, 2)]
    v = [half(4, 8, 2, 64), byte(4, 8, 2, 32), half(4, 8, 2, 2)]
    return [*k, *v, 2, 4, 4, page_size, lengths, table, 6]


def to_half(page_size: int) -> list[Any]:
    a = to_q(page_size)
    return [a[1], a[0], a[2], a[4], a[3], a[5], *a[6:]]


SOUND: dict[str, Any] = {
    "fp16_to_fp8": lambda: [half(2, 4, 2, 8), byte(2, 4, 2, 8), 2, 1, 2],
    "fp8_to_fp16": lambda: [byte(2, 4, 2, 8), half(2, 4, 2, 8), 2, 1, 2],
    "fp16_to_q_kv": lambda: to_q(8),
    "fp16_to_q_kv flat": lambda: to_q(0),
    "q_to_fp16_kv": lambda: to_half(8),
    "q_to_fp16_kv flat": lambda: to_half(0),
    "count_match": lambda: [torch.ones(1, 5).long(), torch.ones(1, 3).long(), 4],
    "cache_rotate": lambda: [half(4, 2, 3), torch.tensor([0, 3]).int(), half(2, 3)],
}
# Arguments that a call does not look at, or that may be less than they are.
FREE = {
    "fp16_to_q_kv": {6, 7},
    "fp16_to_q_kv flat": {10, 11},
    "q_to_fp16_kv": {6, 7, 8},
    "q_to_fp16_kv flat": {10, 11},
}


def wrong(value: Any) -> list[Any]:
    """What must be refused in place of ``value``."""
    if not isinstance(value, torch.Tensor):
        return [None, "1", 1.0, True, ABSENT, -1, 1 << 20, (1 << 63) - 1, 1 << 80]
    others = [t for t in (torch.float64, torch.int16, torch.uint8, torch.int64) if t != value.dtype]
    bad: list[Any] = [None, 1.0, ABSENT, *(value.to(t) for t in others)]
    bad += [value.narrow(d, 0, value.shape[d] - 1).contiguous() for d in range(value.dim())]
    return [
        *bad,
        value.flatten()[None, None, None],
        value.flatten()[0],
        value.expand(2, *value.shape),
    ]


LONG, ORDER = torch.ones(1, 5).long(), torch.tensor([0, 3]).int()
CALLS = [
    *[
        (name, at, bad)
        for name in SOUND
        if name not in ("count_match", "cache_rotate")
        for at, value in enumerate(SOUND[name]())
        if at not in FREE.get(name, ())
        for bad in wrong(value)
    ],
    *[
        ("count_match", at, bad)
        for at in (0, 1)
        for bad in (None, ABSENT, LONG.int(), LONG.float(), torch.ones(1, 10).long()[:, ::2])
    ],
    ("count_match", 0, LONG[:, :3].contiguous()),
    *[("count_match", 2, bad) for bad in (None, 4.0, True, -1, 6, (1 << 63) - 1, 1 << 80)],
    *[
        ("cache_rotate", 0, bad)
        for bad in (None, ABSENT, half(4, 2, 3).to("meta"), half(4), half(3, 2, 3), half(4, 2, 6)[..., ::2], half(0, 2, 3))
    ],
    *[
        ("cache_rotate", 1, bad)
        for bad in (None, ABSENT, ORDER.long(), ORDER[None], ORDER - 1, ORDER + 1, ORDER + (2**31 - 4))
    ],
    *[("cache_rotate", 2, bad) for bad in (None, half(2, 2), half(2, 3).float(), half(0))],
]  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_arguments_are_accepted(name: str) -> None:
    getattr(ext, name.split()[0])(*SOUND[name]())


@pytest.mark.parametrize("n", range(len(CALLS)))
def test_one_wrong_argument_is_refused(n: int) -> None:
    name, at, bad = CALLS[n]
    arguments, before = SOUND[name](), SOUND[name]()
    arguments[at] = bad
    with pytest.raises((RuntimeError, TypeError)):
        print(name, at, bad, getattr(ext, name.split()[0])(*arguments))
    for i, (old, new) in enumerate(zip(before, arguments, strict=True)):
        assert i == at or not isinstance(old, torch.Tensor) or torch.equal(old, new)


def test_sizes_of_zero() -> None:
    for name in SOUND:
        function, arguments = getattr(ext, name.split()[0]), SOUND[name]()
        if name.startswith("fp"):
            function(*arguments[:4], 0) if len(arguments) == 5 else function(
                *arguments[:8], 0, *arguments[9:]
            )
            for old, new in zip(SOUND[name](), arguments, strict=True):
                assert not isinstance(old, torch.Tensor) or torch.equal(old, new)
    assert ext.count_match(LONG, LONG[:, :0], 5) == ext.count_match(LONG, LONG, 0) == 0
    ext.cache_rotate(half(4, 0), ORDER, half(0))
    ext.cache_rotate(half(0, 2), ORDER[:0], half(2))


def test_no_sequence_writes_beyond_its_tokens() -> None:
    """A token of a whole number of blocks: what lies behind the length is not touched, as it may be newer."""
    k = [byte(4, 8, 8, 64), half(4, 8, 8, 64), half(4, 8, 8, 2)]
    v = [byte(4, 8, 8, 32), half(4, 8, 8, 64), half(4, 8, 8, 2)]
    table = torch.tensor([[1, 0], [2, 3]]).int()
    ext.q_to_fp16_kv(*k, *v, 0, 0, 0, 8, torch.tensor([3, 9]).int(), table, 6)
    changed = (k[1] != 1).flatten(2).all(-1)
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[1, :3] = expected[2] = expected[3, :1] = True
    assert torch.equal(changed, expected)
