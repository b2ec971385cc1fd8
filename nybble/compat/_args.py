"""Arguments as the old interfaces pass them: positional, absent tensors on the meta device, dtypes in fixed words."""

from __future__ import annotations

from ctypes import c_float
from typing import Any

import torch
from torch import Tensor

# The words that the old checks use for a dtype.
DTYPES = {
    "kHalf": torch.float16,
    "kFloat": torch.float32,
    "kLong": torch.int64,
    "kInt": torch.int32,
    "kBool": torch.bool,
    "kUInt8": torch.uint8,
    "kShort": torch.int16,
}


def tensor(name: str, value: Any) -> Tensor:
    """``value``, which must be a tensor. Raises ``TypeError``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}, expected Tensor")
    return value


def optional(name: str, value: Any) -> Tensor | None:
    """``None`` for a tensor on the meta device, which stands for an absent one. Raises ``TypeError``."""
    return None if tensor(name, value).is_meta else value


def dtype(name: str, value: Any, word: str) -> Tensor:
    """``value``, a tensor of the dtype that ``word`` names. Raises ``TypeError``, ``RuntimeError``."""
    given = tensor(name, value)
    if given.dtype != DTYPES[word]:
        raise RuntimeError(f"{name} is incorrect datatype, must be {word}")
    if given.is_meta:
        raise RuntimeError(f"{name} is on the meta device, but it may not be absent")
    return given


def contiguous(name: str, value: Tensor) -> Tensor:
    """``value``, which must be contiguous. Raises ``RuntimeError``."""
    if not value.is_contiguous():
        raise RuntimeError(f"{name} is not contiguous")
    return value


def integer(name: str, value: Any) -> int:
    """``value``, a Python int. Raises ``TypeError``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {type(value).__name__}, expected int")
    return value


def number(name: str, value: Any) -> float:
    """``value``, an int or float, rounded to float32 as a C ``float`` argument is. Raises ``TypeError``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {type(value).__name__}, expected float")
    return c_float(value).value


def boolean(name: str, value: Any) -> bool:
    """``value``, a bool. Raises ``TypeError``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__}, expected bool")
    return value
