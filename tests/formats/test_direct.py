"""A file's bytes in a tensor: any offset, any size, any dtype, and an error within a moment where that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nybble.errors import FormatError
from nybble.formats import direct
from nybble.formats.direct import read_into


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bytes"
    path.write_bytes(torch.randint(0, 256, (100_003,), dtype=torch.uint8).numpy().tobytes())
    return path


@pytest.mark.parametrize("piece", [1, 1 << 10, 1 << 22])
@pytest.mark.parametrize(("offset", "size"), [(0, 1), (13, 40), (7, 99_996), (100_003, 0)])
def test_every_byte_in_its_place(
    file: Path, piece: int, offset: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "PIECE", max(piece, size // 50))
    around = torch.full((size + 2,), 7, dtype=torch.uint8)
    read_into(file, offset, around[1 : size + 1])
    assert around.numpy().tobytes() == b"\7" + file.read_bytes()[offset : offset + size] + b"\7"


def test_dtypes_and_shapes(file: Path) -> None:
    for dtype in (torch.float16, torch.int64, torch.bool, torch.bfloat16):
        target = torch.zeros(3, 5, dtype=dtype)
        read_into(str(file), 9, target)
        assert (
            target.view(torch.uint8).numpy().tobytes()
            == file.read_bytes()[9 : 9 + 15 * dtype.itemsize]
        )


def test_short_and_missing_files(file: Path, tmp_path: Path) -> None:
    target = torch.zeros(10, dtype=torch.uint8)
    with pytest.raises(FormatError, match="expected at least 100004 bytes, the file has 100003"):
        read_into(file, 99_994, target)
    with pytest.raises(FormatError, match="No such file"):
        read_into(tmp_path / "missing", 0, target)
    with pytest.raises(FormatError, match="no regular file"):
        read_into(tmp_path, 0, target)
    with pytest.raises(FormatError, match="cannot be read"):
        read_into("a\0b", 0, target)
    with pytest.raises(FormatError, match="expected at least"):
        read_into(file, 1 << 63, target)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FormatError, match="no regular file"):
            read_into(tmp_path / "pipe", 0, target)
    assert not target.any()


def test_a_file_that_shrinks_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_check_file", lambda path, stop: None)
    monkeypatch.setattr(direct, "PIECE", 1 << 15)
    with pytest.raises(FormatError, match="became shorter"):
        read_into(file, 10, torch.zeros(100_000, dtype=torch.uint8))


def test_what_cannot_be_a_target(file: Path) -> None:
    for target in (torch.zeros(4, 4).T[:2], torch.zeros(4, device="meta")):
        with pytest.raises(ValueError, match="target"):
            read_into(file, 0, target)
    with pytest.raises(ValueError, match="offset"):
        read_into(file, -1, torch.zeros(4))
