"""Meaning of ``quantize_columns``, ``quantize_error`` and ``gptq_group_``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check


def quantize_columns(x: Tensor, scales: Tensor, zero: int, max_code: int) -> tuple[Tensor, Tensor]:
    """``clamp(round(x / scale) + zero, 0, max_code)`` and ``half(half(code - zero) * half(scale))``."""
    op = "quantize_columns"
    _check_columns(op, x, scales)
    _check_grid(op, zero, max_code)
    codes = _codes(x, scales, zero, max_code)
    return codes.to(torch.uint8).contiguous(), _values(codes, scales, zero).contiguous()


def quantize_error(
    x: Tensor, scales: Tensor, factors: Tensor, zero: int, max_code: int, norm: float
) -> Tensor:
    """``sum_r |(code - zero) * s - x|^norm``, ``s = scales * factors[p]``."""
    op = "quantize_error"
    _check_columns(op, x, scales)
    check.dtype(op, torch.float32, factors=factors)
    check.rank(op, "factors", factors, "P", 1)
    _check_grid(op, zero, max_code)
    check.require(0 < norm <= 64, f"{op}: norm is {norm}, expected more than 0, at most 64")
    error = x.new_empty(factors.shape[0], x.shape[1])
    for p, factor in enumerate(factors):
        s = scales * factor
        difference = (_codes(x, s, zero, max_code) - zero) * s - x
        error[p] = difference.abs().pow(norm).sum(0)
    return error


def gptq_group_(
    weight: Tensor,
    codes: Tensor,
    error: Tensor,
    cholesky: Tensor,
    scales: Tensor,
    zero: int,
    max_code: int,
) -> None:
    """Row by row: quantize, ``error = (weight - value) / U[r, r]``, ``weight[q] -= U[r, q] * error`` below."""
    op = "gptq_group_"
    _check_columns(op, weight, scales, "weight", "T")
    T, N = weight.shape
    check.dtype(op, torch.uint8, codes=codes)
    check.rank(op, "codes", codes, "R, N", 2)
    R = codes.shape[0]
    check.shape(op, "codes", codes, "R, N", R, N)
    check.dtype(op, torch.float32, error=error, cholesky=cholesky)
    check.shape(op, "error", error, "R, N", R, N)
    check.shape(op, "cholesky", cholesky, "T, T", T, T)
    _check_grid(op, zero, max_code)
    check.require(R <= T, f"{op}: codes has {R} rows, expected at most the {T} of weight")
    pivots = cholesky.diagonal()[:R]
    check.require(bool((pivots > 0).all()), f"{op}: cholesky's diagonal is not more than 0")
    for r in range(R):
        code = _codes(weight[r], scales, zero, max_code)
        value = _values(code, scales, zero)
        codes[r] = code.to(torch.uint8)
        error[r] = (weight[r] - value) / pivots[r]
        weight[r] = value
        weight[r + 1 : R] -= cholesky[r, r + 1 : R, None] * error[r]
    weight[R:] -= cholesky[:R, R:].T @ error


def _codes(x: Tensor, scales: Tensor, zero: int, max_code: int) -> Tensor:
    """As floats."""
    return ((x / scales).round() + zero).nan_to_num(nan=max_code).clamp(0, max_code)


def _values(codes: Tensor, scales: Tensor, zero: int) -> Tensor:
    return ((codes - zero) * scales.half().float()).half().float()


def _check_columns(op: str, x: Tensor, scales: Tensor, name: str = "x", rows: str = "R") -> None:
    check.dtype(op, torch.float32, **{name: x, "scales": scales})
    check.rank(op, name, x, f"{rows}, N", 2)
    check.shape(op, "scales", scales, "N", x.shape[1])


def _check_grid(op: str, zero: int, max_code: int) -> None:
    check.require(1 <= max_code <= 255, f"{op}: max_code is {max_code}, expected 1 to 255")
    check.require(
        0 <= zero <= max_code, f"{op}: zero is {zero}, expected 0 to max_code = {max_code}"
    )
