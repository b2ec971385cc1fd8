"""``quantize_columns``, ``quantize_error`` and ``gptq_group_``: floats to codes on a uniform grid.

A grid has one scale a column. A code ``c``, a whole number from 0 to ``max_code``, stands for
``(c - zero) * scale``; ``b`` bits with both signs are ``zero = 2^(b-1)``, ``max_code = 2^b - 1``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_quantize_columns = torch.ops.nybble.quantize_columns.default
_quantize_error = torch.ops.nybble.quantize_error.default
_gptq_group = torch.ops.nybble.gptq_group_.default


def quantize_columns(
    x: Tensor, scales: Tensor, *, zero: int, max_code: int
) -> tuple[Tensor, Tensor]:
    """``code = clamp(round(x / scale) + zero, 0, max_code)`` and the value it stands for, one scale a column.

    Ties go to the even whole number; NaN, also of 0 / 0, becomes ``max_code``. The value is what a float16
    matrix would hold: ``half(half(code - zero) * half(scale))``. The division uses the scale as given.

    Args:
        x: float32 ``[R, N]``, any strides.
        scales: float32 ``[N]``.
        zero: code of the number 0, 0 to ``max_code``.
        max_code: 1 to 255.

    Returns codes, uint8 ``[R, N]``, and values, float32 ``[R, N]``. Raises ``RuntimeError`` naming what does not fit.

    >>> quantize_columns(torch.tensor([[0.25], [0.75], [9.0]]), torch.tensor([0.5]), zero=8, max_code=15)
    (tensor([[ 8],
            [10],
            [15]], dtype=torch.uint8), tensor([[0.0000],
            [1.0000],
            [3.5000]]))
    """
    ensure_loaded()
    codes, values = _quantize_columns(x, scales, zero, max_code)
    return codes, values


def quantize_error(
    x: Tensor, scales: Tensor, factors: Tensor, *, zero: int, max_code: int, norm: float = 2.0
) -> Tensor:
    """``error[p, n] = sum_r |(code - zero) * s - x[r, n]|^norm`` with ``s = scales[n] * factors[p]``: a search for scales.

    Codes are those of :func:`quantize_columns` at scale ``s``; nothing is rounded to float16.

    Args:
        x: float32 ``[R, N]``, any strides.
        scales: float32 ``[N]``.
        factors: float32 ``[P]``, each tried on every column.
        zero: code of the number 0, 0 to ``max_code``.
        max_code: 1 to 255.
        norm: more than 0, at most 64.

    Returns float32 ``[P, N]``. Raises ``RuntimeError`` naming what does not fit.

    >>> x, scales, factors = torch.tensor([[0.3]]), torch.tensor([0.5]), torch.tensor([0.5, 1.0, 1.5])
    >>> quantize_error(x, scales, factors, zero=8, max_code=15)
    tensor([[0.0025],
            [0.0400],
            [0.0900]])
    """
    ensure_loaded()
    error: Tensor = _quantize_error(x, scales, factors, zero, max_code, norm)
    return error


def gptq_group_(
    weight: Tensor,
    codes: Tensor,
    error: Tensor,
    cholesky: Tensor,
    scales: Tensor,
    *,
    zero: int,
    max_code: int,
) -> None:
    """GPTQ on the first ``R`` of ``T`` rows: quantize a row, take its error off all rows below, go on with the next.

    For ``r`` from 0 to ``R - 1``: ``codes[r]`` and a value as in :func:`quantize_columns`;
    ``error[r] = (weight[r] - value) / U[r, r]``; ``weight[r] = value``; ``weight[q] -= U[r, q] * error[r]`` for every
    row ``q > r``, also those from ``R`` on. A whole matrix is one call a group, each on the rows from its own first on.

    Args:
        weight: float32 ``[T, N]``, unit stride along N; changed in place.
        codes: uint8 ``[R, N]``, unit stride along N; overwritten.
        error: float32 ``[R, N]``, unit stride along N; overwritten. Over all groups its squares add up to
            ``trace(D^T H D)``, ``D`` the whole change of the weight and ``H`` the Hessian.
        cholesky: float32 ``[T, T]``: ``U``, upper, with inverse Hessian ``U^T U``; the rest is not read.
        scales: float32 ``[N]``, of this group.
        zero: code of the number 0, 0 to ``max_code``.
        max_code: 1 to 255.

    Raises ``RuntimeError`` naming what does not fit, also a diagonal of ``U`` that is not more than 0; on a GPU such a
    diagonal gives errors that are not finite.

    >>> weight = torch.tensor([[0.3], [0.1]])
    >>> codes, error = torch.empty(1, 1, dtype=torch.uint8), torch.empty(1, 1)
    >>> U = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    >>> gptq_group_(weight, codes, error, U, torch.tensor([0.5]), zero=8, max_code=15)
    >>> codes, error, weight
    (tensor([[9]], dtype=torch.uint8), tensor([[-0.1000]]), tensor([[0.5000],
            [0.2000]]))
    """
    ensure_loaded()
    _gptq_group(weight, codes, error, cholesky, scales, zero, max_code)


@register_fake("nybble::quantize_columns")
def _(x: Tensor, scales: Tensor, zero: int, max_code: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(x.shape)


@register_fake("nybble::quantize_error")
def _(x: Tensor, scales: Tensor, factors: Tensor, zero: int, max_code: int, norm: float) -> Tensor:
    return x.new_empty(factors.shape[0], x.shape[1])


@register_fake("nybble::gptq_group_")
def _(
    weight: Tensor,
    codes: Tensor,
    error: Tensor,
    cholesky: Tensor,
    scales: Tensor,
    zero: int,
    max_code: int,
) -> None:
    return None
