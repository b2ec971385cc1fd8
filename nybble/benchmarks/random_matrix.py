"""Packed matrices of random codes, made on the device that reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.errors import SettingError
from nybble.ops.packed import PackedMatrix
from nybble.ops.tiles import COLUMNS, PLANES, ROWS


@dataclass(frozen=True)
class Segment:
    """Packed rows that follow each other, of one width."""

    bits: int
    rows: int
    group: int  # rows that share a scale; the last group may be shorter


def random_matrix(
    K: int, N: int, bits: int, group: int, device: torch.device | str = "cpu"
) -> PackedMatrix:
    """Random codes ``[K, N]``, with scales that turn inputs of variance 1 into outputs of about 1.

    Raises:
        SettingError: no such width, or a group that is no whole number of blocks of 32 rows.
    """
    return random_mixture(K, N, (Segment(bits, -(-K // ROWS) * ROWS, group),), device)


def random_mixture(
    K: int,
    N: int,
    segments: tuple[Segment, ...],
    device: torch.device | str = "cpu",
    *,
    permuted: bool = False,
    zeros: bool = False,
) -> PackedMatrix:
    """The same with several widths, rows in random order (``permuted``), a zero for each scale (``zeros``).

    Raises:
        SettingError: no such width, or segments and groups that are no whole number of blocks of 32 rows.
    """
    blocks = block_table(segments)
    KB, NB, groups = len(blocks), -(-N // COLUMNS), int(blocks[-1, 1]) + 1
    if (KB - 1) * ROWS >= K or KB * ROWS < K:
        raise SettingError(f"segments have {KB * ROWS} rows, expected {K} in blocks of {ROWS}")
    bits = (
        torch.zeros(groups, device="cpu")
        .index_put((blocks[:, 1].long(),), blocks[:, 0].float())
        .to(device)
    )
    spread = 2**bits / 12**0.5  # standard deviation of evenly spread codes
    scales = (0.5 + torch.rand(NB, groups, COLUMNS, device=device)) / (
        spread[None, :, None] * K**0.5
    )
    words = NB * int(blocks[:, 0].sum()) * 8
    codes = torch.randint(-(2**63), 2**63 - 1, (words,), device=device)
    order = torch.randperm(KB * ROWS, device=device, dtype=torch.int32) if permuted else None
    return PackedMatrix(
        K=K,
        N=N,
        weight=codes.view(torch.uint8),
        scales=scales.half(),
        blocks=blocks,
        zeros=(2.0 ** (bits[None, :, None] - 1)).expand_as(scales).contiguous() if zeros else None,
        perm=None if order is None else torch.where(order < K, order, -1),
    )


def random_words(rows: int, columns: int) -> Tensor:
    """Packed codes of other programs' matrices: random int32, on the GPU."""
    bits = torch.iinfo(torch.int32)
    return torch.randint(bits.min, bits.max, (rows, columns), device="cuda", dtype=torch.int32)


def block_table(segments: tuple[Segment, ...]) -> Tensor:
    """Bits and scale group of each block of 32 rows, int32 ``[KB, 2]``.

    >>> block_table((Segment(4, 64, 32), Segment(3, 96, 64))).tolist()
    [[4, 0], [4, 1], [3, 2], [3, 2], [3, 3]]
    """
    rows: list[list[int]] = []
    first = 0
    for segment in segments:
        _check(segment)
        per_group = segment.group // ROWS
        count = segment.rows // ROWS
        rows += [[segment.bits, first + block // per_group] for block in range(count)]
        first += -(-count // per_group)
    return torch.tensor(rows, dtype=torch.int32, device="cpu")


def _check(segment: Segment) -> None:
    if segment.bits not in PLANES:
        raise SettingError(f"bits is {segment.bits}, expected one of {', '.join(map(str, PLANES))}")
    for name, value in (("group", segment.group), ("rows", segment.rows)):
        if value < ROWS or value % ROWS:
            raise SettingError(f"{name} is {value}, expected a multiple of {ROWS}")
