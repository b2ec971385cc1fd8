"""Cases of ``moe_route``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.cases.base import DTYPES, F32, Case


def plain_route(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, experts and the weights' bound, one row at a time in float64."""
    E = logits.shape[-1]
    rows = logits.double().reshape(-1, E)
    weights = torch.zeros(len(rows), k, dtype=torch.float64)
    experts = torch.zeros(len(rows), k, dtype=torch.int64)
    bound = torch.zeros(len(rows), k, dtype=torch.float64)
    for r, row in enumerate(rows):
        chosen = sorted(range(E), key=lambda e: (-float(row[e]), e))[:k]
        p = row.softmax(0)[chosen]
        weights[r] = p / p.sum() if renormalize else p
        experts[r] = torch.tensor(chosen)
        # The difference to the largest logit is rounded before the exponential makes it relative.
        depth = (row.max() - row[chosen]).nan_to_num(posinf=0.0)
        bound[r] = weights[r] * (16 + depth) * F32 + 1e-38
    shape = (*logits.shape[:-1], k)
    return weights.view(shape), experts.view(shape), bound.view(shape)


def route_cases() -> Iterator[Case]:
    shapes = [((1, 4), 2), ((3, 8), 2), ((70, 128), 8), ((0, 16), 4), ((2, 3, 7), 3), ((4, 1), 1), ((2, 60), 60)]  # fmt: skip
    shapes.append(((3, 300), 40))  # more than a GPU's lanes keep in registers
    odd = {
        "ties": torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]]),
        "masked": torch.tensor([[-torch.inf, 0.5, -torch.inf, -torch.inf, -torch.inf]]),
        "far-apart": torch.tensor([[500.0, -500.0, 0.0, -501.0, -502.0]]),  # the others underflow
        "strided": torch.randn(6, 20)[:, 2:14:2],
        "expanded": torch.randn(1, 6).expand(3, 6),
    }
    for renormalize in (True, False):
        for dtype in DTYPES:
            for shape, k in shapes:
                yield route_case(
                    f"{dtype}-{shape}", (torch.randn(shape) * 3).to(dtype), k, renormalize
                )
        for name, logits in odd.items():
            yield route_case(name, logits, 3, renormalize)


def route_case(name: str, logits: Tensor, k: int, renormalize: bool) -> Case:
    weights, experts, bound = plain_route(logits, k, renormalize)
    name = f"{name}-top{k}-{'renormalized' if renormalize else 'plain'}"
    return Case("moe_route", name, (logits, k, renormalize), (weights, experts), (bound, 0.0))
