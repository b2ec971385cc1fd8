"""Bytes of a file straight into a tensor's memory, by several threads."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from nybble.errors import FormatError

PIECE = (
    4 << 20
)  # bytes one thread reads at a time; opening the file again costs nothing beside that
THREADS = 8  # a fast disk wants several requests at once, and one core does not copy as fast as it delivers


def read_into(path: str | Path, offset: int, target: Tensor) -> None:
    """``target``'s memory = bytes ``offset`` to ``offset + target.nbytes`` of the file.

    Args:
        path: a regular file.
        offset: first byte, any number from 0; need not be a multiple of anything.
        target: any dtype, contiguous; overwritten. Elsewhere than on the CPU, the bytes pass through a copy there.

    Raises ``FormatError`` where the file cannot be read or ends too early, ``ValueError`` for what cannot be a target.
    What is in ``target`` after an error is not specified.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(delete=False) as file:
    ...     _ = file.write(bytes(range(10)))
    >>> target = torch.empty(3, dtype=torch.uint8)
    >>> read_into(file.name, 4, target)
    >>> target
    tensor([4, 5, 6], dtype=torch.uint8)
    >>> os.unlink(file.name)
    """
    if not target.is_contiguous() or target.is_meta:
        raise ValueError("read_into: target must be contiguous, and have memory")
    if offset < 0:
        raise ValueError(f"read_into: offset is {offset}, expected 0 or more")
    if target.is_cpu:
        flat = target.detach().view(-1).view(torch.uint8)
        _read(path, offset, flat)
    else:
        here = torch.empty(target.shape, dtype=target.dtype)
        read_into(path, offset, here)
        target.copy_(here)


def _read(path: str | Path, offset: int, flat: Tensor) -> None:
    size = flat.numel()
    view = flat.numpy().data
    try:
        _check_file(path, offset + size)
        if size <= PIECE:
            _read_piece(path, offset, view)
            return
        starts = range(0, size, PIECE)
        with ThreadPoolExecutor(min(THREADS, len(starts))) as pool:
            # list() waits for all and raises what any of them raised
            list(pool.map(lambda s: _read_piece(path, offset + s, view[s : s + PIECE]), starts))
    except (OSError, ValueError, OverflowError) as error:
        raise FormatError(f"{path}: cannot be read: {error}.") from error


def _check_file(path: str | Path, stop: int) -> None:
    """A pipe would block for ever, and a file that is too short is known before anything is overwritten."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"{path}: cannot be read: it is no regular file.")
    if found.st_size < stop:
        raise FormatError(
            f"{path}: expected at least {stop} bytes, the file has {found.st_size}; fetch it again."
        )


def _read_piece(path: str | Path, offset: int, view: memoryview) -> None:
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise FormatError(f"{path}: it became shorter while it was read; fetch it again.")
            done += count
