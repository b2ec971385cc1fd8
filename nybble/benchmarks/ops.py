"""Each op beside its PyTorch expression, and the quantized matmul beside the memory's speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nybble import ops
from nybble.benchmarks import bandwidth, baselines, pairs
from nybble.benchmarks.random_matrix import random_matrix
from nybble.benchmarks.report import (
    Report,
    Section,
    Times,
    giga,
    load_average,
    measure,
    thread_count,
)
from nybble.errors import SettingError
from nybble.ops.packed import PackedMatrix

BITS, GROUP = 4, 128
ROTATED_BYTES = 640 << 20  # matrices take turns over more than any cache holds
QMATMUL_ROWS = (1, 8, 64, 512)
OP_ROWS = (1, 8, 128)
ACT_BITS = (16, 8, 32)


def qmatmul_row(
    name: str, size: int, rows: int, times: Times, nbytes: int, ceiling: float
) -> dict[str, Any]:
    """Figures of ``[rows, size] @ [size, size]``; ``nbytes`` is the matrix, which is read once.

    >>> row = qmatmul_row("nybble", 1000, 1, Times(0.001, 0.0005), 10**6, 2.0)
    >>> row["GB_s"], row["GFLOP_s"], row["share_of_ceiling"], row["fastest_share"]
    (1.0, 2.0, 0.5, 1.0)
    """
    rate = giga(nbytes, times.median)
    return {
        "by": name,
        "M": rows,
        "ms": times.median * 1e3,
        "fastest_ms": times.fastest * 1e3,
        "GB_s": rate,
        "GFLOP_s": giga(2 * rows * size * size, times.median),
        "share_of_ceiling": rate / ceiling,
        "fastest_share": giga(nbytes, times.fastest) / ceiling,
    }


def _next_product(x: Tensor, turn: Iterator[PackedMatrix], act_bits: int) -> Tensor:
    return ops.qmatmul(x, next(turn), act_bits)


def _next_linear(x: Tensor, turn: Iterator[Tensor]) -> Tensor:
    return F.linear(x, next(turn))


def _qmatmul_rows(
    size: int, seconds: float, rotated: int, rows: Sequence[int], ceiling: float
) -> Iterator[dict[str, Any]]:
    matrices = [random_matrix(size, size, BITS, GROUP)]
    count = max(2, -(-rotated // matrices[0].nbytes))
    matrices += [random_matrix(size, size, BITS, GROUP) for _ in range(count - 1)]
    turn = cycle(matrices)
    for M in rows:
        x = torch.randn(M, size)
        for act_bits in ACT_BITS:
            times = measure(partial(_next_product, x, turn, act_bits), seconds)
            name = f"nybble, act_bits {act_bits}"
            yield qmatmul_row(name, size, M, times, matrices[0].nbytes, ceiling)


def _dense_rows(
    size: int, seconds: float, rotated: int, rows: Sequence[int], ceiling: float
) -> Iterator[dict[str, Any]]:
    """PyTorch's own product in bfloat16, which reads four times the bytes."""
    weight = torch.randn(size, size).bfloat16()
    weights = [weight] + [weight.clone() for _ in range(max(1, rotated // weight.nbytes))]
    turn = cycle(weights)
    for M in rows:
        x = torch.randn(M, size).bfloat16()
        times = measure(partial(_next_linear, x, turn), seconds)
        yield qmatmul_row("torch bfloat16", size, M, times, weight.nbytes, ceiling)


def _op_rows(seconds: float, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    for M in rows:
        for name, ours, torchs in pairs.pairs(M):
            with torch.inference_mode():
                mine, theirs = measure(ours, seconds), measure(torchs, seconds)
            yield {
                "op": name,
                "M": M,
                "nybble_us": mine.median * 1e6,
                "torch_us": theirs.median * 1e6,
                "times_faster": theirs.median / mine.median,
                "fastest_times_faster": theirs.fastest / mine.fastest,
            }


def run(
    *,
    size: int = 8192,
    threads: int | None = None,
    seconds: float = 0.5,
    rotated: int = ROTATED_BYTES,
    qmatmul_rows: Sequence[int] = QMATMUL_ROWS,
    op_rows: Sequence[int] = OP_ROWS,
) -> Report:
    """Time the quantized matmul of ``[size, size]``, then the other ops.

    Raises:
        SettingError: ``size`` is no multiple of the group.
    """
    if size < GROUP or size % GROUP:
        raise SettingError(f"size is {size}, expected a multiple of {GROUP}")
    load = load_average()
    with thread_count(threads) as used:
        torch.manual_seed(0)
        memory = bandwidth.read_ceiling()
        ceiling = max(memory.values())
        products = list(_qmatmul_rows(size, seconds, rotated, qmatmul_rows, ceiling))
        products += _dense_rows(size, seconds, rotated, qmatmul_rows, ceiling)
        notes = ["Share: of the best memory read above. PyTorch's sample draws from the same 40."]
        missing = baselines.missing()
        if missing:
            notes.append(f"Not measured, not installed: {missing}.")
        else:
            for M, times, nbytes in baselines.matmul_nbits(
                size, GROUP, rotated, qmatmul_rows, used, seconds
            ):
                name = "onnxruntime MatMulNBits, accuracy 4"
                products.append(qmatmul_row(name, size, M, times, nbytes, ceiling))
        others = list(_op_rows(seconds / 5, op_rows))
    settings = {
        "size": size,
        "bits": BITS,
        "group": GROUP,
        "threads": used,
        "rotated_bytes": rotated,
        "hidden": pairs.HIDDEN,
        "heads": [pairs.HEADS, pairs.KV_HEADS, pairs.HEAD_DIM],
        "held": pairs.HELD,
        "vocabulary": pairs.VOCABULARY,
    }
    products.sort(key=lambda row: int(row["M"]))
    sections = [
        bandwidth.section(memory),
        Section("qmatmul", f"[M, {size}] @ [{size}, {size}], {BITS} bits, group {GROUP}", products),
        Section("ops", "The other ops, beside PyTorch", others),
    ]
    return Report("ops", settings, load, sections, notes)
