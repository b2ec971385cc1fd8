"""ExLlamaV2's product of EXL2 weights, where ``exllamav2`` is installed. Its first import compiles its extension, for minutes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nybble.benchmarks.gpu_cases import Weight
from nybble.benchmarks.gpu_timing import copies, graph_times
from nybble.benchmarks.random_matrix import random_words

ROWS = 32  # up to here its kernel multiplies; beyond, the weights are made dense first
TUNING_CALLS = 250  # it tries block sizes in the first 200 calls of a shape


def missing() -> str | None:
    """Why it is not measured, as a text."""
    if find_spec("exllamav2") is None:
        return "ExLlamaV2 is not measured: pip install exllamav2"
    return None


def exllamav2(weight: Weight, rows: Sequence[int]) -> Iterator[tuple[int, float]]:
    """M and seconds, float16, random codes and scales; nothing where ``missing`` says why."""
    if missing() is not None:
        return
    from exllamav2.ext import exllamav2_ext  # type: ignore[import-not-found,unused-ignore]

    made = [_tensors(exllamav2_ext, weight)]
    made += [[t.clone() for t in made[0]] for _ in range(copies(made[0][0].nbytes) - 1)]
    handles = [exllamav2_ext.make_q_matrix(*tensors, 0) for tensors in made]
    try:
        for M in (M for M in rows if M <= ROWS):
            x = torch.randn(M, weight.K, device="cuda", dtype=torch.float16)
            y = torch.empty(M, weight.N, device="cuda", dtype=torch.float16)
            calls = [partial(exllamav2_ext.gemm_half_q_half, x, b, y, True) for b in handles]
            for i in range(TUNING_CALLS):
                calls[i % len(calls)]()
            yield M, graph_times(calls).median
    finally:
        torch.cuda.synchronize()
        for handle in handles:
            exllamav2_ext.free_q_matrix(handle)


def _tensors(ext: Any, weight: Weight) -> list[Tensor]:
    """The arguments of ``make_q_matrix``, but for the last."""
    groups, words = [], 0
    for s in weight.segments:
        for row in range(0, s.rows, s.group):
            groups += [s.bits, words]
            words += min(s.group, s.rows - row) * s.bits // 32
    G, K, N = len(groups) // 2, weight.K, weight.N
    q_groups = torch.tensor(groups, dtype=torch.int16)
    order = torch.randperm(K) if weight.permuted else torch.arange(K)
    nothing = torch.empty(1, 1, device="meta")
    return [
        random_words(words, N),
        order.short().cuda() if weight.permuted else nothing,
        order.argsort().short().cuda() if weight.permuted else nothing,
        random_words(G, N // 8),
        (torch.rand(G, device="cuda") / 16384).half(),
        q_groups.cuda(),
        ext.make_group_map(q_groups, words).cuda(),
        *[nothing] * 5,
    ]
