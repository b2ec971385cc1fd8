"""What a case is, and the rounding units its tolerance follows from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DTYPES = tuple(UNIT)
F32 = UNIT[torch.float32]


@dataclass(frozen=True)
class Case:
    """``op(*args)`` must be within ``bound`` of ``expected``, elementwise.

    Compared are the arguments it has written, where its name ends in ``_``, then what it returns. Several of them:
    ``expected`` and ``bound`` are tuples.
    """

    op: str
    name: str
    args: tuple[Any, ...]
    expected: Tensor | tuple[Tensor, ...]  # float64, or int64 to be met exactly
    bound: Tensor | float | tuple[Tensor | float, ...] = 0.0
    written: tuple[int, ...] = (0,)  # arguments that an op in place changes

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def rounding(expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounding the result to ``dtype``; the last term covers numbers below its smallest normal one."""
    tiny = 2.0**-24 if dtype == torch.float16 else 0.0
    return expected.abs() * UNIT[dtype] + tiny
