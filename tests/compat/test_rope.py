"""The old rotation and the positions of images: recorded calls, and calls that must be refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nybble.compat import exllamav2_ext as ext

ROOT = Path(__file__).resolve().parents[2]
ABSENT = torch.empty((1, 1), device="meta")


@pytest.mark.parametrize("family", ["rope"])
def test_recorded_calls(data: Path, family: str) -> None:
    tool, calls = data / "golden" / "replay.py", data / "golden" / "ext"
    done = subprocess.run(
        [sys.executable, tool, calls, "--device", "cpu", "--family", family, "--path", ROOT, "-v"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def rope_arguments() -> list[Any]:
    table = torch.ones(1, 1, 16, 8, dtype=torch.float16)
    x = torch.ones(2, 3, 2, 8, dtype=torch.float16)
    return [x, table, table.clone(), 4, 2, 8, torch.zeros(2, dtype=torch.int32), True]


def mrope_arguments() -> list[Any]:
    ids = torch.tensor([5, 100, 101, 6])
    return [torch.zeros(3, 4, dtype=torch.int64), ids, 2, [(100, 102)], [(1, 2, 4)]]


SOUND = {"rope_": rope_arguments, "gen_mrope_pos_ids": mrope_arguments}
T = torch.ones
WRONG: list[tuple[str, int, Any]] = [
    *[("rope_", at, bad) for at in (0, 1, 2) for bad in (None, T(2, 3, 2, 8), ABSENT)],
    *[("rope_", at, bad) for at in (1, 2) for bad in (T(0).half(), T(1, 1, 0, 8).half())],
    ("rope_", 0, T(2, 3, 2, 7).half()),  # no whole tokens
    ("rope_", 0, T(2, 13, 2, 8).half()),  # positions 4 to 16: the table ends at 15
    ("rope_", 0, T(2, 3, 8, 2).half().transpose(2, 3)),
    ("rope_", 0, torch.tensor(1.0).half()),
    ("rope_", 1, T(1, 1, 16, 6).half()),
    ("rope_", 1, torch.tensor(1.0).half()),
    *[("rope_", 3, bad) for bad in (None, 1.0, True, -2, 16, 1 << 31, (1 << 63) - 1, 1 << 70)],
    *[("rope_", 4, bad) for bad in (None, 2.0, 0, -2, 5, 1 << 62)],
    *[("rope_", 5, bad) for bad in (None, 8.0, 0, -8, 4, 7, 1 << 62)],
    *[("rope_", 6, bad) for bad in (None, T(2), T(3).int(), T(0).int(), torch.tensor([0, 2**31 - 1]).int())],
    *[("rope_", 7, bad) for bad in (None, 1, 0.0)],
    *[("gen_mrope_pos_ids", 0, bad) for bad in (None, T(3, 4), T(2, 4).long(), T(12).long(), ABSENT)],
    ("gen_mrope_pos_ids", 0, T(4, 3).long().t()),
    *[("gen_mrope_pos_ids", 1, bad) for bad in (None, T(4), T(1, 4).long(), T(8).long()[::2])],
    *[("gen_mrope_pos_ids", 2, bad) for bad in (None, 2.0, 0, -1, 3)],  # 3: no row is left
    *[("gen_mrope_pos_ids", 3, bad) for bad in (None, 3, [], [(1,)], [(1, 2, 3)], [(1.0, 2.0)], [5])],
    *[("gen_mrope_pos_ids", 4, bad) for bad in (None, [(1, 2)], [(1, 2, 4)] * 2, [(0, 2, 4)], [(1, -2, 4)])],
]  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_arguments_are_accepted(name: str) -> None:
    getattr(ext, name)(*SOUND[name]())


@pytest.mark.parametrize("n", range(len(WRONG)))
def test_one_wrong_argument_is_refused(n: int) -> None:
    name, at, bad = WRONG[n]
    arguments = SOUND[name]()
    before = arguments[0].clone()
    arguments[at] = bad
    with pytest.raises((RuntimeError, TypeError)):
        getattr(ext, name)(*arguments)
    assert at == 0 or torch.equal(arguments[0], before)


def test_tables_of_different_width_are_named() -> None:
    arguments = rope_arguments()
    arguments[2] = T(1, 1, 16, 6).half()
    with pytest.raises(RuntimeError, match="sin table does not match cos table"):
        ext.rope_(*arguments)


def test_nothing_to_rotate() -> None:
    for shape in ((0, 3, 2, 8), (2, 0, 2, 8)):
        arguments = rope_arguments()
        arguments[0] = T(shape).half()
        ext.rope_(*arguments[:6], ABSENT, True)


def test_image_positions_against_the_rule_token_by_token() -> None:
    """Random texts and images, some side by side, some cut short, against the rule written as a loop."""
    for _ in range(50):
        ids: list[int] = []
        spans, grids, first = [], [], 1000
        merge = int(torch.randint(1, 3, ()))
        for _ in range(int(torch.randint(0, 4, ()))):
            ids += torch.randint(0, 1000, (int(torch.randint(0, 3, ())),)).tolist()
            grid = [int(n) for n in torch.randint(1, 4, (3,))]
            tokens = grid[0] * grid[1] * grid[2]
            spans.append((first, first + tokens))
            grids.append((grid[0], grid[1] * merge, grid[2] * merge))
            ids += range(first, first + tokens - int(torch.randint(0, 2, ())))
            first += tokens + int(torch.randint(0, 3, ()))
        length = len(ids) + int(torch.randint(-1, 3, ())) if ids else 2
        got = torch.full((3, length), -1)
        after = ext.gen_mrope_pos_ids(
            got, torch.tensor(ids, dtype=torch.int64), merge, spans, grids
        )
        columns, expected_after = by_token(ids, length, merge, spans, grids)
        assert (got.t().tolist(), after) == (columns, expected_after)


def by_token(
    ids: list[int],
    length: int,
    merge: int,
    spans: list[tuple[int, int]],
    grids: list[tuple[int, int, int]],
) -> tuple[list[list[int]], int]:
    base = after = 0
    columns = []
    for i in range(length):
        inside = [j for j, (a, b) in enumerate(spans) if i < len(ids) and a <= ids[i] < b]
        if inside:
            (begin, _), (frames, rows, width) = spans[inside[0]], grids[inside[0]]
            k, rows, width = ids[i] - begin, rows // merge, width // merge
            place = [
                base + k // width // rows % frames, base + k // width % rows, base + k % width
            ]  # fmt: skip
            after = max(after, *(p + 1 for p in place))
        else:
            base = after
            place = [base] * 3
            after = base = base + 1
        columns.append(place)
    return columns, after
