"""Token ids to vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble import ops


@dataclass(frozen=True)
class Embedding:
    """``y = weight[ids]`` in the model's dtype."""

    weight: Tensor  # [V, D], as stored
    dtype: torch.dtype

    def __call__(self, ids: Tensor) -> Tensor:
        """int64 ``[B, T]`` to ``dtype`` ``[B, T, D]``; each id in ``[0, V)``."""
        return ops.embedding(ids, self.weight, dtype=self.dtype)
