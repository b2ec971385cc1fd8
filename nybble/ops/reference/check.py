"""What the references refuse, in the words of the native library's own checks."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def require(good: bool, message: str) -> None:
    """Raise ``RuntimeError(message)`` unless ``good``."""
    if not good:
        raise RuntimeError(message)


def floats(op: str, **tensors: Tensor | None) -> None:
    """Each tensor is float32, float16 or bfloat16."""
    for name, t in tensors.items():
        if t is not None and t.dtype not in FLOATS:
            raise RuntimeError(
                f"{op}: {name} is {_name(t.dtype)}, expected float32, float16 or bfloat16"
            )


def dtype(op: str, expected: torch.dtype, **tensors: Tensor | None) -> None:
    """Each tensor has exactly this dtype."""
    for name, t in tensors.items():
        if t is not None and t.dtype != expected:
            raise RuntimeError(f"{op}: {name} is {_name(t.dtype)}, expected {_name(expected)}")


def shape(op: str, name: str, t: Tensor | None, letters: str, *sizes: int) -> None:
    """``t`` has these sizes, which the message also gives as letters."""
    if t is not None and tuple(t.shape) != sizes:
        raise RuntimeError(
            f"{op}: {name} has shape {list(t.shape)}, expected [{letters}] = {list(sizes)}"
        )


def rank(op: str, name: str, t: Tensor, letters: str, dims: int) -> None:
    """``t`` has this many dimensions."""
    if t.dim() != dims:
        raise RuntimeError(f"{op}: {name} has shape {list(t.shape)}, expected [{letters}]")


def within(op: str, name: str, t: Tensor, low: int, high: int) -> None:
    """Every element is in ``[low, high)``."""
    if t.numel() > 0 and (int(t.min()) < low or int(t.max()) >= high):
        raise RuntimeError(
            f"{op}: {name} has values {int(t.min())} to {int(t.max())}, expected {low} to {high - 1}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
