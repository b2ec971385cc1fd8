"""Linear layers kept as floating point numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.errors import FormatError
from nybble.formats.base import Checker, LinearWeights
from nybble.ops.packed import PackedMatrix

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class DenseLinear(LinearWeights):
    """``y = x @ weight.T + bias``; ``weight`` is ``[N, K]`` of float16, bfloat16 or float32."""

    weight: Tensor
    bias: Tensor | None = None
    key: str = ""

    @property
    def K(self) -> int:
        return self.weight.shape[1]

    @property
    def N(self) -> int:
        return self.weight.shape[0]

    def validate(self) -> None:
        check = Checker(self.key)
        check.tensor("weight", self.weight, FLOATS, (None, None))
        check.bias(self.bias, self.N)

    def to_packed(self) -> PackedMatrix:
        raise FormatError(
            f"{self.key or 'weight'}: a dense layer has no packed form; use its weight as it is."
        )
