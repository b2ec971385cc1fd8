"""Reading a checkpoint's bytes straight into a tensor. ``docs/compat/quantize.md`` says what differs from the old one."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.compat import _args
from nybble.errors import FormatError
from nybble.formats.direct import read_into


def stloader_read(filename: str, offset: int, size: int, target: Tensor) -> None:
    """The first ``size`` bytes of ``target`` = those of the file from ``offset`` on."""
    if not isinstance(filename, str):
        raise TypeError(f"filename is {type(filename).__name__}, expected str")
    for name, value in (("offset", offset), ("size", size)):
        if not 0 <= _args.integer(name, value) < 1 << 64:
            raise TypeError(f"{name} is {value}, expected 0 to 2^64 - 1")
    place = _args.contiguous("target", _args.tensor("target", target))
    if place.is_meta or place.nbytes < size:
        raise RuntimeError(f"target has {0 if place.is_meta else place.nbytes} bytes, not {size}")
    try:
        read_into(filename, offset, place.detach().view(-1).view(torch.uint8)[:size])
    except FormatError as error:
        raise RuntimeError(f"I/O error reading tensor: {error}") from error
