"""The two orders of a tile's bytes: both hold every code, and the GPU's words are where the kernels look."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from nybble.ops import tiles

WIDTHS = sorted(tiles.PLANES)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("order", ["planes", "lanes"])
def test_codes_come_back(bits: int, order: str) -> None:
    codes = torch.randint(0, 1 << bits, (3, 2, 32, 16), dtype=torch.uint8)
    pack, unpack = getattr(tiles, f"_pack_{order}"), getattr(tiles, f"_unpack_{order}")
    packed = pack(codes, bits)
    assert packed.shape == (3, 2, 64 * bits) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_bit_of_a_lane_has_one_place(bits: int) -> None:
    words = [word for part in tiles.PARTS[bits] for word in part]
    for word in words:
        places = Counter(f.at + i for f in word.fields for i in range(f.count))
        mine = (2, 3, 4, 5, 10, 11, 12, 13) if word.shared else range(4 * word.nbytes)
        assert places == Counter(mine)  # of one half; the other is alike
    held = Counter(
        (f.pair, f.first + i) for word in words for f in word.fields for i in range(f.count)
    )
    assert held == Counter((pair, bit) for pair in range(8) for bit in range(bits))


def test_a_lane_holds_its_share_of_a_tensor_core_operand() -> None:
    """Row 13, column 5 of a 4-bit tile: the worked example of docs/formats/packed.md."""
    codes = torch.zeros(32, 16, dtype=torch.uint8)
    codes[13, 5] = 0b1011
    # Column 5: g = 5, v = 0. Row 13 = 8 * 1 + 2 * 2 + 1: t = 2, u = 1, h = 1. Lane 22, pair 2: bits 8-11 of the high half.
    word = tiles._pack_lanes(codes, 4).view(torch.int32).view(32, 2)
    assert word.nonzero().tolist() == [[22, 0]]
    assert int(word[22, 0]) & 0xFFFFFFFF == 0b1011 << (16 + 8)


def test_two_lanes_share_a_word_of_a_3_bit_tile() -> None:
    """Row 21, column 5: its pair lies in the second part."""
    codes = torch.zeros(32, 16, dtype=torch.uint8)
    # g = 5, v = 0. Row 21 = 16 + 2 * 2 + 1: s = 1, u = 0, t = 2, h = 1. Lane 22, pair 4, bits 2-4 of the high half; row 23
    # is lane 23's, turned left by 4.
    codes[21, 5], codes[23, 5] = 0b101, 0b011
    tile = tiles._pack_lanes(codes, 3)
    assert tile[:128].count_nonzero() == 0
    assert tile[128:].view(torch.int32).nonzero().tolist() == [[11]]
    expected = (0b101 << 18) | (0b011 << 22)
    assert int(tile[128:].view(torch.int32)[11]) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("bits", WIDTHS)
def test_there_and_back(bits: int) -> None:
    from nybble.ops.packed import PackedMatrix, dequantize
    from tests.cases.qmatmul import random_packed

    m = random_packed(200, 37, [bits, 4], shuffled=True)
    there = m.to("cuda")
    assert isinstance(there, PackedMatrix) and there.weight.is_cuda
    assert torch.equal(there.to("cpu").weight, m.weight)
    assert torch.equal(dequantize(there).cpu(), dequantize(m))
