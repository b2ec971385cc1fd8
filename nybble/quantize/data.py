"""Text to windows of tokens, read as a stream: a corpus of any size takes the memory of one document."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from nybble.errors import SettingError

SEPARATOR = "<|endoftext|>"


def documents(path: str | Path) -> Iterator[str]:
    """The documents of a ``.txt`` or ``.txt.xz`` file, parted by lines ``<|endoftext|>``, without outer line breaks.

    Raises SettingError when the file is missing, is not UTF-8 or a damaged .xz.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            lines: list[str] = []
            for line in file:
                if line.rstrip("\n") == SEPARATOR:
                    yield "".join(lines).strip("\n")
                    lines = []
                else:
                    lines.append(line)
            yield "".join(lines).strip("\n")
    except FileNotFoundError:
        raise SettingError(f"{path}: no such text file; name a .txt or .txt.xz file") from None
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise SettingError(
            f"{path}: expected UTF-8 text, plain or .xz, got damaged bytes ({error})"
        ) from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def tokens(
    texts: Iterable[str], encode: Callable[[str], list[int]], bos: int | None
) -> Iterator[int]:
    """Each document's tokens with ``bos`` before it, and one ``bos`` at the end; without ``bos`` just the tokens.

    >>> list(tokens(["ab", "c"], lambda text: [ord(x) for x in text], 0))
    [0, 97, 98, 0, 99, 0]
    """
    for text in texts:
        if bos is not None:
            yield bos
        yield from encode(text)
    if bos is not None:
        yield bos


def windows(stream: Iterable[int], length: int, count: int | None = None) -> Iterator[Tensor]:
    """Token windows int64 ``[length]`` that follow each other without overlap; a short rest is dropped.

    >>> [w.tolist() for w in windows(range(7), 3)]
    [[0, 1, 2], [3, 4, 5]]
    """
    block: list[int] = []
    made = 0
    for token in stream:
        if count is not None and made == count:
            return
        block.append(token)
        if len(block) == length:
            yield torch.tensor(block)
            made += 1
            block = []
