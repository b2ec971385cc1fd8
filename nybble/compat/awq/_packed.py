"""Packed forms of weights that come as plain tensors: made once, used as long as the tensors live and stay as they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class _Seen:
    """One tensor as it was, held weakly."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._place = _place(tensor)
        # An inference tensor counts no versions, so only its contents can tell whether it has changed.
        self._contents = tensor.clone() if tensor.is_inference() else None
        self._version = None if tensor.is_inference() else tensor._version

    def is_still(self, tensor: Tensor) -> bool:
        """``tensor`` is the one seen, unchanged."""
        if self._tensor() is not tensor or self._place != _place(tensor):
            return False
        if self._contents is not None:
            return torch.equal(self._contents, tensor)
        return self._version == tensor._version


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


@dataclass(frozen=True)
class _Entry:
    settings: Hashable
    seen: tuple[_Seen, ...]
    packed: Any


_entries: Any = WeakTensorKeyDictionary()


def packed(make: Callable[[], T], settings: Hashable, weight: Tensor, *others: Tensor) -> T:
    """``make()``, or its result of an earlier call with the same settings and the same unchanged tensors.

    The result is forgotten when ``weight`` is freed. A write that torch does not count (through ``.data`` or NumPy) is not seen.
    """
    tensors = (weight, *others)
    entry: _Entry | None = _entries.get(weight)
    if (
        entry is not None
        and entry.settings == settings
        and all(map(_Seen.is_still, entry.seen, tensors))
    ):
        found: T = entry.packed
        return found
    made = make()
    _entries[weight] = _Entry(settings, tuple(_Seen(t) for t in tensors), made)
    return made
