"""What the references refuse, in the words of the native library's own checks."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.packed import PackedMatrix
from nybble.ops.tiles import COLUMNS, PLANES, ROWS

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


def packed(op: str, m: PackedMatrix) -> None:
    """The tensors fit each other and the layout; ``bias`` is not looked at."""
    require(m.N >= 0, f"{op}: N is {m.N}, expected 0 or more")
    require(m.K >= 0, f"{op}: K is {m.K}, expected 0 or more")
    NB = -(-m.N // COLUMNS)
    dtype(op, torch.float16, scales=m.scales)
    rank(op, "scales", m.scales, "N/16, G, 16", 3)
    G = m.scales.shape[1]
    shape(op, "scales", m.scales, "N/16, G, 16", NB, G, COLUMNS)
    dtype(op, torch.float32, zeros=m.zeros)
    shape(op, "zeros", m.zeros, "N/16, G, 16", NB, G, COLUMNS)
    require(m.blocks.device.type == "cpu", f"{op}: blocks must be on the CPU")
    dtype(op, torch.int32, blocks=m.blocks)
    rank(op, "blocks", m.blocks, "KB, 2", 2)
    KB = m.blocks.shape[0]
    shape(op, "blocks", m.blocks, "KB, 2", KB, 2)
    widths = m.blocks[:, 0].tolist()
    require(
        all(bits in PLANES for bits in widths),
        f"{op}: blocks has widths {sorted(set(widths))}, expected 2, 3, 4, 5, 6 or 8",
    )
    within(op, "blocks' group", m.blocks[:, 1], 0, G)
    dtype(op, torch.uint8, weight=m.weight)
    require(
        m.weight.numel() == NB * 64 * sum(widths),
        f"{op}: weight has {m.weight.numel()} bytes, expected {NB} column blocks of {64 * sum(widths)} bytes",
    )
    dtype(op, torch.int32, perm=m.perm)
    shape(op, "perm", m.perm, "KB*32", KB * ROWS)
    if m.perm is not None:
        within(op, "perm", m.perm, -1, m.K)
    else:
        require(KB * ROWS >= m.K, f"{op}: K is {m.K}, but blocks hold only {KB * ROWS} rows")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
