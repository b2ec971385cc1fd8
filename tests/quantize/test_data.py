"""Text to windows: documents of plain and packed files, where the first token goes, what is dropped."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from nybble.errors import SettingError
from nybble.quantize import data

TEXT = "One.\n\nStill one.\n<|endoftext|>\nTwo, not <|endoftext|> here.\n"
DOCUMENTS = ["One.\n\nStill one.", "Two, not <|endoftext|> here."]


def test_documents_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    assert list(data.documents(tmp_path / "a.txt")) == DOCUMENTS


def test_documents_of_packed_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    assert list(data.documents(tmp_path / "a.txt.xz")) == DOCUMENTS


def test_each_document_starts_with_the_first_token() -> None:
    made = data.tokens(["ab", "c"], lambda text: [ord(x) for x in text], 0)
    assert list(made) == [0, 97, 98, 0, 99, 0]
    assert list(data.tokens(["ab", "c"], lambda text: [ord(x) for x in text], None)) == [97, 98, 99]


@pytest.mark.parametrize("bad", [b"\xff\xfe\x00\xd8", "xz"])
def test_damaged_files(tmp_path: Path, bad: bytes | str) -> None:
    path = tmp_path / ("a.xz" if bad == "xz" else "a.txt")
    path.write_bytes(lzma.compress(b"x" * 5000)[:40] if isinstance(bad, str) else bad)
    with pytest.raises(SettingError, match="expected UTF-8 text"):
        list(data.documents(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such text file"):
        list(data.documents(tmp_path / "none.txt"))
