"""Meaning of ``moe_route``."""

from __future__ import annotations

from torch import Tensor

from nybble.ops.reference import check


def moe_route(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of ``softmax(logits)``, divided by their sum if ``renormalize``."""
    check.floats("moe_route", logits=logits)
    check.require(logits.dim() >= 1, "moe_route: logits has shape [], expected [..., E]")
    E = logits.shape[-1]
    check.require(1 <= k <= E, f"moe_route: k is {k}, expected 1 to E = {E} from logits")
    wide = logits.float()
    # A NaN sorts before every number: such a row takes the first experts, as the others do where all are equal.
    undefined = ~wide.softmax(-1).isfinite().all(-1, keepdim=True)
    order = wide.masked_fill(undefined, 0).sort(dim=-1, descending=True, stable=True).indices
    experts = order[..., :k].contiguous()
    chosen = wide.gather(-1, experts)
    if renormalize:
        weights = chosen.softmax(-1)
    else:
        weights = wide.softmax(-1).gather(-1, experts)
    return weights.masked_fill(undefined, float("nan")).contiguous(), experts
