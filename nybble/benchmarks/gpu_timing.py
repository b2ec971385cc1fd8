"""Times of kernels: many launches in one CUDA graph, over operands that take turns through more than the L2 cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from nybble.benchmarks.report import Times

Call = Callable[[], object]

ROTATED_BYTES = 320 << 20  # operands take turns over more than any L2 holds (126 MB on a B200)
LAUNCHES, REPLAYS = 20, 20  # at least
SLOW, SLOW_CALLS = 10e-3, 3  # what takes longer needs no graph, and is not repeated so often
GRAPH_SECONDS = 1e-3  # a replay's own start, some microseconds, is lost in this
WARM_SECONDS = 0.02  # an idle GPU's clocks rise within this
# An H200 that multiplies lowers its clock after 0.05 s, to stay within its power, and has it back after 0.2 s of rest.
BUSY_SECONDS, REST_SECONDS = 0.1, 0.25


def copies(nbytes: int) -> int:
    """How many operands of ``nbytes`` must take turns, so that none is found in a cache.

    >>> copies(64 << 20), copies(1 << 30)
    (5, 2)
    """
    return max(2, -(-ROTATED_BYTES // max(1, nbytes)))


def launches(calls: int, seconds: float) -> int:
    """Launches in one graph: whole turns of ``calls``, at least ``LAUNCHES``, at least ``GRAPH_SECONDS`` long.

    >>> launches(3, 5e-3), launches(3, 10e-6), launches(50, 10e-6)
    (21, 102, 100)
    """
    wanted = max(LAUNCHES, round(GRAPH_SECONDS / max(seconds, 1e-7)))
    return -(-wanted // calls) * calls


def graph_times(calls: Sequence[Call]) -> Times:
    """Seconds a launch, each of ``calls`` in turn; every call is one launch of what is measured.

    Raises:
        RuntimeError: a call cannot be captured, since it waits for the GPU or makes memory outside the graph.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for call in calls:  # what is made at the first call must not be made in the graph
            call()
        if call_seconds(calls[0], 1)[0] > SLOW:
            return Times.of(call_seconds(calls[0], SLOW_CALLS))
        graph, count = capture(calls, launches(len(calls), GRAPH_SECONDS))
        rough = replay_seconds(graph, 2)[-1] / count
        if launches(len(calls), rough) > count:
            graph, count = capture(calls, launches(len(calls), rough))
        replay_seconds(graph, int(WARM_SECONDS / (rough * count)))
        taken = replay_seconds(graph, REPLAYS)
    torch.cuda.current_stream().wait_stream(side)
    if sum(taken) > BUSY_SECONDS:
        rest()
    return Times.of([seconds / count for seconds in taken])


def rest() -> None:
    """Let the clocks come back, so that what is timed next does not pay for what was timed before."""
    torch.cuda.synchronize()
    time.sleep(REST_SECONDS)


def call_times(call: Call) -> Times:
    """Seconds a call without a graph, for what cannot be captured: Python and the launches count too."""
    with torch.inference_mode():
        call()
        return Times.of(call_seconds(call, REPLAYS))


def capture(calls: Sequence[Call], count: int) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of ``count`` launches, on the current stream. Not ``torch.cuda.graph``: that collects garbage each time."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for i in range(count):
            calls[i % len(calls)]()
    finally:
        graph.capture_end()
    return graph, count


def replay_seconds(graph: torch.cuda.CUDAGraph, replays: int) -> list[float]:
    """Seconds of each replay."""
    return call_seconds(graph.replay, replays)


def call_seconds(call: Call, times: int) -> list[float]:
    """Seconds of each call. All are queued before the first is waited for, so that the GPU never idles."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    marks[-1].synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
