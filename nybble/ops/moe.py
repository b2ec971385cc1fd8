"""Mixture of experts: ``moe_route`` chooses the experts of each row, ``moe_apply`` runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_moe_route = torch.ops.nybble.moe_route.default


def moe_route(logits: Tensor, k: int, *, renormalize: bool = True) -> tuple[Tensor, Tensor]:
    """The ``k`` likeliest experts of each row: ``p = softmax(logits)``, its ``k`` largest, divided by their sum.

    Experts come most likely first; among equal logits the lower index first. Computed in float32. A row whose softmax is
    not defined (NaN, +inf, or only -inf) gives NaN weights and the first ``k`` experts.

    Args:
        logits: ``[..., E]`` float32, float16 or bfloat16, any strides.
        k: 1 to E.
        renormalize: False: the weights are ``p`` itself and sum to less than 1.

    Returns weights float32 ``[..., k]`` and experts int64 ``[..., k]``. Raises ``RuntimeError`` naming what does not fit.

    >>> weights, experts = moe_route(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), 2)
    >>> weights.tolist(), experts.tolist()
    ([[0.5, 0.5]], [[1, 3]])
    """
    ensure_loaded()
    weights, experts = _moe_route(logits, k, renormalize)
    return weights, experts


def moe_apply(
    x: Tensor, weights: Tensor, experts: Tensor, run: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """``y[t] = sum over j of weights[t, j] * run(experts[t, j], x[t])``, added in float32.

    Each expert that any row chose runs once, on all rows that chose it, in order of index. A weight of 0 runs nothing.

    Args:
        x: ``[T, D]`` float32, float16 or bfloat16.
        weights: float32 ``[T, k]``, as :func:`moe_route` gives them.
        experts: int64 ``[T, k]``.
        run: ``(e, rows [n, D]) -> [n, D]``, expert ``e`` on some rows.

    Returns ``[T, D]`` in x's dtype. Raises ``RuntimeError`` naming what does not fit.

    >>> x = torch.tensor([[1.0], [10.0]])
    >>> weights, experts = torch.ones(2, 1), torch.tensor([[3], [5]])
    >>> moe_apply(x, weights, experts, lambda e, rows: rows * e)
    tensor([[ 3.],
            [50.]])
    """
    if x.dim() != 2 or weights.shape != experts.shape or weights.shape[:-1] != x.shape[:1]:
        raise RuntimeError(
            f"moe_apply: weights and experts have shapes {list(weights.shape)} and {list(experts.shape)}, "
            f"expected [T, k] for x [T, D] = {list(x.shape)}"
        )
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    k, share, wanted = experts.shape[1], weights.flatten(), experts.flatten()
    places = share.nonzero().flatten()
    places = places[wanted[places].argsort(stable=True)]
    ids, counts = wanted[places].unique_consecutive(return_counts=True)
    for e, mine in zip(ids.tolist(), places.split(counts.tolist()), strict=True):
        rows = mine // k
        y.index_add_(0, rows, run(e, x[rows]) * share[mine, None])
    return y.to(x.dtype)


@register_fake("nybble::moe_route")
def _(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    shape = (*logits.shape[:-1], k)
    return (
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty(shape, dtype=torch.int64),
    )
