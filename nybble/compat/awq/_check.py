"""Checks that the functions of ``awq_inference_engine`` share, in the words of the old ones."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.compat import _args

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32)

# What C++ calls a dtype.
_NAMES = {
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float32: "Float",
    torch.float64: "Double",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.bool: "Bool",
}


def require(good: bool, message: str) -> None:
    """Raise ``RuntimeError(message)`` unless ``good``."""
    if not good:
        raise RuntimeError(message)


def name_of(dtype: torch.dtype) -> str:
    """``Half`` for ``torch.float16`` and so on."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def tensors(**given: object) -> None:
    """All are tensors with data, on one device. Raises ``TypeError``, ``RuntimeError``."""
    first = ""
    for name, value in given.items():
        one = _args.tensor(name, value)
        require(not one.is_meta, f"{name} is on the meta device and has no data")
        device = str(one.device)
        first = first or device
        require(device == first, f"{name} is on {device}, but {next(iter(given))} is on {first}")


def dtype(name: str, value: Tensor, expected: torch.dtype) -> None:
    """``value`` has this dtype."""
    require(
        value.dtype == expected,
        f"{name}: expected scalar type {name_of(expected)} but found {name_of(value.dtype)}",
    )


def one_of(function: str, value: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """``value`` has a dtype that ``function`` was made for."""
    require(value.dtype in allowed, f"\"{function}\" not implemented for '{name_of(value.dtype)}'")


def shape(name: str, value: Tensor, *sizes: int | None) -> None:
    """``value`` has these sizes; None stands for any."""
    same = value.dim() == len(sizes) and all(
        size is None or got == size for got, size in zip(value.shape, sizes, strict=True)
    )
    text = ", ".join("any" if size is None else str(size) for size in sizes)
    require(same, f"{name} has shape {list(value.shape)}, expected [{text}]")


def rows(name: str, value: Tensor) -> int:
    """Number of rows along the last dimension, which must exist."""
    require(value.dim() >= 1, f"{name} has shape [], expected at least one dimension")
    count = 1
    for size in value.shape[:-1]:
        count *= size
    return count


def elements(name: str, value: Tensor, count: int) -> None:
    """``value`` has ``count`` elements, in any shape."""
    require(value.numel() == count, f"{name} has {value.numel()} elements, expected {count}")
