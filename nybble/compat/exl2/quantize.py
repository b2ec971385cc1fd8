"""The quantizer's functions: packing, rounding, GPTQ, the choice of widths, Hadamard matrices. ``docs/compat/quantize.md``
says what differs from the old ones."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args
from nybble.formats.base import pack_nibbles, pack_words

WIDTHS = (2, 3, 4, 5, 6, 8)


def pack_rows_4(input: Tensor, output: Tensor) -> None:
    """``output[r, c]``: nibble ``i`` is ``input[r, 8c + i] - 1``; 0, as padding, becomes 15. int16 to int32."""
    values = _matrix("input", input, "kShort")
    words = _matrix("output", output, "kInt")
    _same("input", values, "output", (words.shape[0], 8 * words.shape[1]))
    _within("input", values, 16)
    words.copy_(pack_nibbles(((values - 1) & 15).to(torch.uint8).contiguous()))


def pack_columns(input: Tensor, output: Tensor, bits: int) -> None:
    """Each column of ``input`` as one stream of ``bits``-bit codes, lowest bits first. int16 to int32."""
    codes = _matrix("input", input, "kShort")
    words = _matrix("output", output, "kInt")
    if _args.integer("bits", bits) not in WIDTHS:
        raise RuntimeError(f"bits is {bits}, expected one of {WIDTHS}")
    if codes.shape[0] * bits % 32:
        raise RuntimeError(
            f"input has {codes.shape[0]} rows of {bits} bits, expected whole words of 32"
        )
    _same("output", words, "input", (codes.shape[0] * bits // 32, codes.shape[1]))
    _within("input", codes, (1 << bits) - 1)
    words.copy_(pack_words(codes.to(torch.uint8), bits))


def quantize(
    input: Tensor, output: Tensor, scale: Tensor, out_q: Tensor, qzero: float, maxq: float
) -> None:
    """Round ``input`` with one scale a column: values to ``output``, codes to ``out_q`` unless that is absent."""
    x = _matrix("input", input, "kFloat")
    values = _matrix("output", output, "kFloat")
    _same("output", values, "input", x.shape)
    codes = _codes(out_q, x)
    code, value = ops.quantize_columns(x, _scales(scale, x), **_grid(qzero, maxq))
    values.copy_(value)
    if codes is not None:
        codes.copy_(code)


def quantize_range_inplace(
    weights: Tensor, scale: Tensor, out_q: Tensor, qzero: float, maxq: float, a: int, b: int
) -> None:
    """Rows ``a`` to ``b - 1`` of ``weights`` rounded in place, their codes to ``out_q`` unless that is absent."""
    w = _matrix("weights", weights, "kFloat")
    codes = _codes(out_q, w)
    rows = _rows(a, b, w)
    code, value = ops.quantize_columns(w[rows], _scales(scale, w), **_grid(qzero, maxq))
    w[rows] = value
    if codes is not None:
        codes[rows] = code.to(torch.int16)


def quantize_err(
    input: Tensor,
    output: Tensor,
    scale: Tensor,
    qzero: float,
    maxq: float,
    err_norm: float,
    min_p: float,
    max_p: float,
    p_grid: int,
) -> None:
    """``output[i, (c / 4) % 128] += sum |rounded - input|^err_norm`` of columns ``c``, scales times the ``i``-th of
    ``p_grid + 1`` factors from ``min_p`` to ``max_p``."""
    x = _matrix("input", input, "kFloat")
    sums = _matrix("output", output, "kFloat")
    steps = _args.integer("p_grid", p_grid)
    if steps < 1:
        raise RuntimeError(f"p_grid is {steps}, expected 1 or more")
    _same("output", sums, "p_grid", (steps + 1, 128))
    t = torch.arange(steps + 1, device=x.device).float() / steps
    factors = _args.number("min_p", min_p) * (1 - t) + _args.number("max_p", max_p) * t
    norm = _args.number("err_norm", err_norm)
    error = ops.quantize_error(x, _scales(scale, x), factors, **_grid(qzero, maxq), norm=norm)
    places = torch.arange(x.shape[1], device=x.device) // 4 % 128
    sums.index_add_(1, places, error)


def quantize_range(
    quant: Tensor,
    scale: Tensor,
    out_q: Tensor,
    qzero: float,
    maxq: float,
    hessian_inv: Tensor,
    weights: Tensor,
    error: Tensor,
    a: int,
    b: int,
) -> None:
    """GPTQ on rows ``a`` to ``b - 1`` of ``weights``, which changes all rows from ``a`` on; values, errors and codes of the
    rows to ``quant``, ``error`` and ``out_q``. ``hessian_inv`` is the upper Cholesky factor of the inverse Hessian."""
    w = _matrix("weights", weights, "kFloat")
    factor = _matrix("hessian_inv", hessian_inv, "kFloat")
    _same("hessian_inv", factor, "weights", (w.shape[0], w.shape[0]))
    values, errors = _matrix("quant", quant, "kFloat"), _matrix("error", error, "kFloat")
    _same("quant", values, "weights", w.shape)
    _same("error", errors, "weights", w.shape)
    codes = _codes(out_q, w)
    rows = _rows(a, b, w)
    code = torch.empty(w[rows].shape, dtype=torch.uint8, device=w.device)
    ops.gptq_group_(
        w[a:], code, errors[rows], factor[a:, a:], _scales(scale, w), **_grid(qzero, maxq)
    )
    values[rows] = w[rows]
    if codes is not None:
        codes[rows] = code.to(torch.int16)


def sim_anneal(
    slots: list[list[tuple[int, float]]],
    max_cost: int,
    initial_temp: float,
    cooling_factor: float,
    min_temp: float,
    iterations: int,
    norm: float,
) -> tuple[list[tuple[int, float]], list[int], float, int, float]:
    """One ``(cost, err)`` of each slot, little ``sum of err^norm`` and costs of at most ``max_cost`` together.

    Returns the options, their indices, the sum of ``err^norm``, the cost, the largest ``err``.
    """
    options = _options(slots)
    limit, steps = _unsigned("max_cost", max_cost), _args.integer("iterations", iterations)
    power = _args.number("norm", norm)
    every = [option for slot in options for option in slot]
    losses = torch.tensor([err for _, err in every]).double() ** power
    first = torch.tensor([0, *(len(slot) for slot in options)]).cumsum(0)
    choice = ops.anneal_knapsack(
        torch.tensor([cost for cost, _ in every], dtype=torch.int64),
        losses,
        first,
        min(limit, (1 << 63) - 1),
        _temperatures(initial_temp, cooling_factor, min_temp),
        steps=max(steps, 0),
        seed=secrets.randbits(63),
    )
    solution = [slot[i] for slot, i in zip(options, choice.tolist(), strict=True)]
    total = float(losses[first[:-1] + choice].sum())
    return (
        solution,
        choice.tolist(),
        total,
        sum(cost for cost, _ in solution),
        max(err for _, err in solution),
    )


def had_paley(h: Tensor) -> None:
    """``h`` = a Hadamard matrix by Paley's first construction, of a prime plus 1 rows. float16."""
    _fill(_args.contiguous("h", _matrix("h", h, "kHalf")), ops.paley1)


def had_paley2(h: Tensor) -> None:
    """``h`` = a Hadamard matrix by Paley's second construction, of twice a prime plus 2 rows. float16."""
    _fill(_matrix("h", h, "kHalf"), ops.paley2)


def _fill(h: Tensor, construct: Callable[[int], Tensor]) -> None:
    _same("h", h, "its rows", (h.shape[0], h.shape[0]))
    try:
        h.copy_(construct(h.shape[0]))
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def _matrix(name: str, value: Any, word: str) -> Tensor:
    given = _args.dtype(name, value, word)
    if given.dim() != 2:
        raise RuntimeError(f"{name} has {given.dim()} dimensions, expected 2")
    return given


def _same(name: str, value: Tensor, other: str, shape: Sequence[int]) -> None:
    if tuple(value.shape) != tuple(shape):
        raise RuntimeError(
            f"{name} has shape {list(value.shape)}, expected {list(shape)} from {other}"
        )


def _within(name: str, values: Tensor, largest: int) -> None:
    if values.numel() > 0 and (int(values.min()) < 0 or int(values.max()) > largest):
        raise RuntimeError(
            f"{name} has values {int(values.min())} to {int(values.max())}, expected 0 to {largest}"
        )


def _scales(value: Any, x: Tensor) -> Tensor:
    scale = _args.dtype("scale", value, "kFloat")
    if scale.shape != x.shape[1:]:
        raise RuntimeError(f"scale has shape {list(scale.shape)}, expected [{x.shape[1]}]")
    return scale


def _codes(value: Any, x: Tensor) -> Tensor | None:
    if _args.optional("out_q", value) is None:
        return None
    codes = _matrix("out_q", value, "kShort")
    _same("out_q", codes, "the weights", x.shape)
    return codes


def _rows(a: Any, b: Any, x: Tensor) -> slice:
    if not 0 <= _args.integer("a", a) <= _args.integer("b", b) <= x.shape[0]:
        raise RuntimeError(f"rows {a} to {b} are not among the {x.shape[0]} of the weights")
    return slice(a, b)


def _grid(qzero: Any, maxq: Any) -> dict[str, int]:
    zero, last = _args.number("qzero", qzero), _args.number("maxq", maxq)
    if not (zero.is_integer() and last.is_integer()):  # false for nan and inf
        raise RuntimeError(f"qzero is {zero} and maxq {last}, expected whole numbers")
    return {"zero": int(zero), "max_code": int(last)}


def _options(slots: Any) -> list[list[tuple[int, float]]]:
    found = []
    for slot in slots:
        for option in slot:
            if len(option) != 2:
                raise TypeError(f"an option has {len(option)} numbers, expected (cost, err)")
        found.append([(_unsigned("cost", c), _args.number("err", e)) for c, e in slot])
    if not found:
        raise RuntimeError("slots is empty")
    if any(cost >= 1 << 63 for slot in found for cost, _ in slot):
        raise RuntimeError("slots has a cost of 2^63 or more")
    return found


def _unsigned(name: str, value: Any) -> int:
    number = _args.integer(name, value)
    if not 0 <= number < 1 << 64:
        raise TypeError(f"{name} is {number}, expected 0 to 2^64 - 1")
    return number


def _temperatures(initial: Any, factor: Any, last: Any) -> Tensor:
    start, cooling = _args.number("initial_temp", initial), _args.number("cooling_factor", factor)
    stop = _args.number("min_temp", last)
    if not (0 < start < math.inf and 0 < stop < math.inf and 0 < cooling < 1):
        raise RuntimeError(
            f"temperatures from {start} to {stop}, each {cooling} of the one before: expected numbers above 0, and below 1"
        )
    levels = max(0, int(math.log(stop / start) / math.log(cooling)))
    return start * cooling ** torch.arange(levels).double()
