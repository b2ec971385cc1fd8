"""The bytes of one tile, 32 rows of 16 columns at ``bits`` bits: ``64 * bits`` bytes, in an order of each kind of device.

On the CPU a tile is bit planes of bytes, on a GPU words of the lanes of a warp; docs/formats/packed.md draws both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = 16
ROWS = 32
LANES = 32
PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


def pack_tiles(codes: Tensor, bits: int) -> Tensor:
    """``[..., 32, 16]`` uint8 codes to ``[..., 64 * bits]`` bytes, in the order of the tensor's device."""
    return _pack_lanes(codes, bits) if codes.is_cuda else _pack_planes(codes, bits)


def unpack_tiles(tiles: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack_tiles`."""
    return _unpack_lanes(tiles, bits) if tiles.is_cuda else _unpack_planes(tiles, bits)


def _pack_planes(codes: Tensor, bits: int) -> Tensor:
    lead = codes.shape[:-2]
    # [row of a quad, column] of eight quads -> byte 4 * column + row
    quads = codes.unflatten(-2, (8, 4)).transpose(-1, -2).reshape(*lead, 8, 64)
    planes = []
    shift = 0
    for p in PLANES[bits]:
        fields = 8 // p
        part = ((quads >> shift) & ((1 << p) - 1)).view(*lead, p, fields, 64)
        packed = torch.zeros_like(part[..., 0, :])
        for f in range(fields):
            packed |= part[..., f, :] << (p * f)
        planes.append(packed.flatten(-2))
        shift += p
    return torch.cat(planes, dim=-1)


def _unpack_planes(tiles: Tensor, bits: int) -> Tensor:
    lead = tiles.shape[:-1]
    quads = torch.zeros(*lead, 8, 64, dtype=torch.uint8, device=tiles.device)
    shift = start = 0
    for p in PLANES[bits]:
        fields = 8 // p
        plane = tiles[..., start : start + 64 * p].reshape(*lead, p, 1, 64)
        shifts = torch.arange(fields, device=tiles.device, dtype=torch.uint8).view(fields, 1) * p
        quads |= ((plane >> shifts) & ((1 << p) - 1)).view(*lead, 8, 64) << shift
        shift += p
        start += 64 * p
    return quads.view(*lead, 8, COLUMNS, 4).transpose(-1, -2).reshape(*lead, ROWS, COLUMNS)


@dataclass(frozen=True)
class Field:
    """Bits ``first`` to ``first + count - 1`` of both codes of a pair, at bit ``at`` of either half of a word."""

    pair: int
    first: int
    count: int
    at: int


@dataclass(frozen=True)
class Word:
    """One word of a lane, its two halves alike.

    Lanes ``2 i`` and ``2 i + 1`` may share a word of 32 bits: each has bits 2 to 5 of its bytes, and the odd lane's are
    turned left by 4.
    """

    nbytes: int  # of the lane. 4: halves of 16 bits; 2: of 8, or half of a shared word
    fields: tuple[Field, ...]
    shared: bool = False

    @property
    def half(self) -> int:
        """Bits from a field to its other half."""
        return 16 if self.shared else 4 * self.nbytes


def _whole(bits: int, pairs: Iterable[int], at: int = 0) -> tuple[Field, ...]:
    """Whole codes of ``pairs``, one after another."""
    return tuple(Field(pair, 0, bits, at + bits * i) for i, pair in enumerate(pairs))


# Parts of a tile: [32 lanes][words of the part]. Pairs 0-3 are one 16 x 16 operand of a tensor-core product, 4-7 the next.
PARTS: dict[int, tuple[tuple[Word, ...], ...]] = {
    2: ((Word(4, _whole(2, (0, 1, 4, 5, 2, 3, 6, 7))),),),
    3: (
        (
            Word(
                4,
                (
                    *_whole(3, (0, 1)),
                    Field(5, 1, 2, 6),
                    *_whole(3, (2, 3), at=8),
                    Field(7, 1, 2, 14),
                ),
            ),
        ),
        (
            Word(
                2,
                (Field(4, 0, 3, 2), Field(5, 0, 1, 5), Field(6, 0, 3, 10), Field(7, 0, 1, 13)),
                shared=True,
            ),
        ),
    ),
    4: ((Word(4, _whole(4, range(4))), Word(4, _whole(4, range(4, 8)))),),
    5: (
        (
            Word(4, (*_whole(5, range(3)), Field(7, 3, 1, 15))),
            Word(4, (*_whole(5, range(3, 6)), Field(7, 4, 1, 15))),
        ),
        (Word(2, (Field(6, 0, 5, 0), Field(7, 0, 3, 5))),),
    ),
    6: (
        (
            Word(4, (*_whole(6, range(2)), Field(6, 0, 4, 12))),
            Word(4, (*_whole(6, range(2, 4)), Field(7, 0, 4, 12))),
        ),
        (Word(4, (*_whole(6, range(4, 6)), Field(6, 4, 2, 12), Field(7, 4, 2, 14))),),
    ),
    8: (tuple(Word(4, _whole(8, range(2 * i, 2 * i + 2))) for i in range(4)),),
}


def _to_lanes(codes: Tensor) -> Tensor:
    """``[..., 32 rows, 16 columns]`` to ``[..., lane, pair, half]``: how a warp holds a 16 x 16 operand, twice.

    Lane ``4 g + t``, pair ``4 s + 2 u + v``, half ``h`` is row ``16 s + 8 u + 2 t + h`` of column ``8 v + g``.
    """
    lead = codes.shape[:-2]
    split = codes.view(*lead, 2, 2, 4, 2, 2, 8)  # s u t h v g
    n = len(lead)
    return split.permute(*range(n), n + 5, n + 2, n, n + 1, n + 4, n + 3).reshape(
        *lead, LANES, 8, 2
    )


def _from_lanes(lanes: Tensor) -> Tensor:
    lead = lanes.shape[:-3]
    n = len(lead)
    split = lanes.view(*lead, 8, 4, 2, 2, 2, 2)  # g t s u v h
    return split.permute(*range(n), n + 2, n + 3, n + 1, n + 5, n + 4, n).reshape(
        *lead, ROWS, COLUMNS
    )


def _turned(words: Tensor, bits: int) -> Tensor:
    """``words``, int32, turned left by ``bits``, 1 to 31."""
    return (words << bits) | ((words >> (32 - bits)) & ((1 << bits) - 1))


def _pack_lanes(codes: Tensor, bits: int) -> Tensor:
    lead = codes.shape[:-2]
    lanes = _to_lanes(codes).int()
    parts = []
    for part in PARTS[bits]:
        words = []
        for word in part:
            value = torch.zeros(*lead, LANES, dtype=torch.int32, device=codes.device)
            for f in word.fields:
                both = (lanes[..., f.pair, :] >> f.first) & ((1 << f.count) - 1)
                value |= both[..., 0] << f.at
                value |= both[..., 1] << (f.at + word.half)
            if word.shared:
                value = value[..., ::2] | _turned(value[..., 1::2], 4)
            words.append(value.to(torch.int16 if word.half == 8 else torch.int32))
        parts.append(torch.stack(words, dim=-1).view(torch.uint8).flatten(-2))
    return torch.cat(parts, dim=-1)


def _unpack_lanes(tiles: Tensor, bits: int) -> Tensor:
    lead = tiles.shape[:-1]
    lanes = torch.zeros(*lead, LANES, 8, 2, dtype=torch.uint8, device=tiles.device)
    start = 0
    for part in PARTS[bits]:
        size = sum(word.nbytes for word in part)
        whole = tiles[..., start : start + LANES * size].reshape(*lead, LANES, size)
        start += LANES * size
        for i, word in enumerate(part):
            raw = whole[..., i * word.nbytes : (i + 1) * word.nbytes].int()
            if word.shared:
                raw = raw.view(*lead, LANES // 2, 4).repeat_interleave(2, dim=-2)
            value = sum(
                (raw[..., b] << (8 * b) for b in range(1, raw.shape[-1])), start=raw[..., 0]
            )
            if word.shared:
                value = torch.stack((value[..., ::2], _turned(value[..., 1::2], 28)), -1).flatten(
                    -2
                )
            for f in word.fields:
                for h in range(2):
                    bit = (value >> (f.at + word.half * h)) & ((1 << f.count) - 1)
                    lanes[..., f.pair, h] |= (bit << f.first).to(torch.uint8)
    return _from_lanes(lanes)
