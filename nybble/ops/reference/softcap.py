"""Meaning of ``softcap_``."""

from __future__ import annotations

import math

from torch import Tensor

from nybble.ops.reference import check


def softcap_(x: Tensor, cap: float) -> None:
    """``x = cap tanh(x / cap)``, in place."""
    check.floats("softcap_", x=x)
    check.require(x.dim() >= 1, "softcap_: x has shape [], expected [..., D]")
    check.require(
        cap > 0 and math.isfinite(cap),
        f"softcap_: cap is {cap}, expected a finite number above 0",
    )
    x.copy_((x.float() / cap).tanh() * cap)
