"""Each op beside its PyTorch expression, and the quantized matmul beside the memory's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nybble import ops
from nybble.benchmarks import bandwidth, baselines
from nybble.benchmarks.decode import random_matrix
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
# A model of about a billion parameters.
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, HELD, VOCABULARY = 2048, 32, 8, 64, 512, 32000

Call = Callable[[], object]


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


def _pairs(M: int) -> Iterator[tuple[str, Call, Call]]:
    """Name, our call and PyTorch's, with ``M`` tokens (of one sequence) or rows."""
    x, gate, up = torch.randn(3, M, HIDDEN).unbind()
    weight, bias = torch.randn(2, HIDDEN).unbind()
    yield (
        "rms_norm",
        lambda: ops.rms_norm(x, weight, 1e-5),
        lambda: F.rms_norm(x, (HIDDEN,), weight, 1e-5),
    )
    yield (
        "layer_norm",
        lambda: ops.layer_norm(x, weight, bias, 1e-5),
        lambda: F.layer_norm(x, (HIDDEN,), weight, bias, 1e-5),
    )
    yield "silu_mul", lambda: ops.silu_mul(gate, up), lambda: F.silu(gate) * up
    yield (
        "gelu_mul tanh",
        lambda: ops.gelu_mul(gate, up, tanh=True),
        lambda: F.gelu(gate, approximate="tanh") * up,
    )
    dense = torch.randn(HIDDEN, HIDDEN)
    yield "matmul float32", lambda: ops.matmul(x, dense), lambda: F.linear(x, dense)
    table, ids = torch.randn(VOCABULARY, HIDDEN).half(), torch.arange(M)[None]
    yield (
        "embedding",
        lambda: ops.embedding(ids, table),
        lambda: F.embedding(ids, table).float(),
    )
    yield from _rope(M)
    yield from _attention(M)
    yield from _sampling(M)


def _rope(M: int) -> Iterator[tuple[str, Call, Call]]:
    heads = torch.randn(1, M, HEADS, HEAD_DIM)
    angles = torch.rand(M, HEAD_DIM // 2)
    cos, sin, positions = angles.cos(), angles.sin(), torch.arange(M)[None]

    def plain() -> Tensor:
        a, b = heads.chunk(2, dim=-1)
        c, s = cos[positions][:, :, None], sin[positions][:, :, None]
        return torch.cat([a * c - b * s, b * c + a * s], dim=-1)

    yield "rope_", lambda: ops.rope_(heads, cos, sin, positions), plain


def _attention(M: int) -> Iterator[tuple[str, Call, Call]]:
    """``M`` new tokens after ``HELD``; keys and values lie head by head, as the cache keeps them."""
    S = HELD + M
    q = torch.randn(1, M, HEADS, HEAD_DIM)
    k, v = (torch.randn(1, KV_HEADS, S, HEAD_DIM).transpose(1, 2) for _ in range(2))
    lengths = torch.tensor([S])
    mask = torch.ones(M, S, dtype=torch.bool).tril(HELD)

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, enable_gqa=True
        )

    yield "attention", lambda: ops.attention(q, k, v, lengths), plain


def _sampling(M: int) -> Iterator[tuple[str, Call, Call]]:
    logits = torch.randn(M, VOCABULARY) * 3
    one, random = torch.ones(M), torch.rand(M)
    top_k, top_p, min_p = torch.full((M,), 40), one * 0.95, one * 0
    tokens = torch.randint(0, VOCABULARY, (M, HELD))

    def sample() -> Tensor:
        best = logits.softmax(-1).topk(40)
        mass = best.values.cumsum(-1)
        kept = best.values * (mass - best.values < 0.95)
        return best.indices.gather(-1, torch.multinomial(kept, 1))

    def penalize() -> Tensor:
        seen = logits.gather(-1, tokens)
        return logits.scatter_(-1, tokens, torch.where(seen < 0, seen * 1.0, seen / 1.0))

    yield "sample", lambda: ops.sample(logits, one, top_k, top_p, min_p, random), sample
    yield (
        "repetition_penalty_",
        lambda: ops.repetition_penalty_(logits, tokens, one),
        penalize,
    )


def _op_rows(seconds: float, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    for M in rows:
        for name, ours, torchs in _pairs(M):
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
        "hidden": HIDDEN,
        "heads": [HEADS, KV_HEADS, HEAD_DIM],
        "held": HELD,
        "vocabulary": VOCABULARY,
    }
    products.sort(key=lambda row: int(row["M"]))
    sections = [
        bandwidth.section(memory),
        Section("qmatmul", f"[M, {size}] @ [{size}, {size}], {BITS} bits, group {GROUP}", products),
        Section("ops", "The other ops, beside PyTorch", others),
    ]
    return Report("ops", settings, load, sections, notes)
