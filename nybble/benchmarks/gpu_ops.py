"""Each op beside PyTorch on a GPU, in CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nybble.benchmarks.gpu_timing import Call, call_times, graph_times
from nybble.benchmarks.pairs import pairs
from nybble.benchmarks.report import Section
from nybble.ops import _native, _schema

ROWS = (1, 8, 128)


def section(rows: Sequence[int] = ROWS) -> tuple[Section, list[str]]:
    """Every pair of ``pairs`` whose op has a CUDA kernel; a note for each side that could not be timed in a graph."""
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    # All operands first: a side that cannot be captured may leave torch's random numbers unusable.
    for M, made in [(M, pairs(M, "cuda", torch.float16)) for M in rows]:
        for name, ours, torchs in made:
            if "CUDA" in _native.native_devices(name.split()[0]):
                (mine, problem), (theirs, their_problem) = seconds(ours), seconds(torchs)
                notes += [f"{name}, M = {M}: {problem}"] if problem else []
                notes += [f"{name}, M = {M}, PyTorch: {their_problem}"] if their_problem else []
                found.append(row(name, M, mine, theirs))
    return Section("ops", "The other ops, beside PyTorch, float16", found), notes


def missing() -> list[str]:
    """Ops without a CUDA kernel: the reference beside itself would say nothing."""
    return [name for name in _schema.SCHEMAS if "CUDA" not in _native.native_devices(name)]


def row(name: str, M: int, mine: float | None, theirs: float | None) -> dict[str, Any]:
    """One row of the table.

    >>> row("a", 1, 1e-6, 2e-6)["times_faster"], row("a", 1, 1e-6, None)["times_faster"]
    (2.0, None)
    """
    return {
        "op": name,
        "M": M,
        "nybble_us": None if mine is None else mine * 1e6,
        "torch_us": None if theirs is None else theirs * 1e6,
        "times_faster": None if mine is None or theirs is None else theirs / mine,
    }


def seconds(call: Call) -> tuple[float | None, str]:
    """Seconds a call, and what is wrong with them: timed without a graph, or None."""
    try:
        return graph_times([call]).median, ""
    except RuntimeError as error:  # it reads a value, or copies from ordinary memory
        problem = f"not captured ({_first_line(error)})"
    torch.cuda.synchronize()  # raises where the GPU itself is at fault
    try:
        return call_times(call).median, problem
    except RuntimeError as error:  # torch._int_mm, below 17 rows
        return None, f"not timed ({_first_line(error)})"


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
