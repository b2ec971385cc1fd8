"""How fast this machine's memory can be read: the ceiling of every product with few rows."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from nybble.benchmarks.report import Section, giga, measure

# Far beyond any cache, so that each pass comes from memory (some server CPUs have 480 MiB of L3).
CEILING_BYTES = 3 << 29
SECONDS = 1.5
ABSENT = 0xFF  # no byte of the buffer


def read_ceiling() -> dict[str, float]:
    """GB/s of each way to read ``CEILING_BYTES`` once, on PyTorch's number of threads.

    The ways: PyTorch's sum of float32; its largest int8; the C library's ``memchr``
    for a byte that is not there, one run a thread. The ceiling is the best of them.
    """
    data = torch.ones(CEILING_BYTES // 4, dtype=torch.int32)
    threads = torch.get_num_threads()
    ways: dict[str, Callable[[], object]] = {
        "torch_sum": data.view(torch.float32).sum,
        "torch_max": data.view(torch.int8).max,
    }
    with ThreadPoolExecutor(threads) as pool:
        ways["memchr"] = _memchr(data, threads, pool)
        return {
            name: giga(data.nbytes, measure(way, SECONDS).fastest) for name, way in ways.items()
        }


def _memchr(data: Tensor, threads: int, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """One pass over ``data``; a foreign call lets go of Python's lock."""
    libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    memchr = libc.memchr
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p
    parts = [(part.data_ptr(), ABSENT, part.nbytes) for part in data.chunk(threads)]
    return lambda: list(pool.map(lambda part: memchr(*part), parts))


def section(ceiling: dict[str, float]) -> Section:
    """The report's table of it."""
    rows = [{"method": name, "GB_s": rate} for name, rate in ceiling.items()]
    return Section("memory", "Memory read", rows)
