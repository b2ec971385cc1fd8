"""What the GPU can do at most: bytes read a second, and fp16 products a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nybble.benchmarks.gpu_timing import Call, call_seconds, graph_times, rest
from nybble.benchmarks.report import Section, giga

READ_BYTES = 4 << 30
SIZE = 8192  # of the square product
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
CONTEXTS = ((64, 4096), (64, 16384))  # batch and tokens held, of cuDNN's decode attention


@dataclass(frozen=True)
class Ceiling:
    """What floors are computed from."""

    read: dict[str, float]  # GB/s of each way to read memory
    rates: dict[str, float]  # TFLOP/s of an fp16 product

    @property
    def gb_s(self) -> float:
        """The best way to read."""
        return max(self.read.values())

    def floor(self, nbytes: float, flops: float = 0.0) -> float:
        """Seconds below which nothing can be that reads or writes ``nbytes`` and does ``flops``.

        >>> ceiling = Ceiling({"a": 1000.0, "b": 4000.0}, {"a product": 800.0})
        >>> ceiling.floor(4e6), ceiling.floor(4e6, 8e9)
        (1e-06, 1e-05)
        """
        return max(nbytes / (self.gb_s * 1e9), flops / (max(self.rates.values()) * 1e12))

    def section(self) -> Section:
        """The report's table of it."""
        rows: list[dict[str, object]] = [
            {"what": name, "GB_s": rate, "TFLOP_s": None} for name, rate in self.read.items()
        ]
        rows += [{"what": name, "GB_s": None, "TFLOP_s": rate} for name, rate in self.rates.items()]
        return Section("ceilings", "Ceilings", rows)


def measure_ceiling() -> Ceiling:
    """Both ceilings. cuDNN's decode attention is left out where torch has none."""
    return Ceiling(read_ceiling(), fp16_rates())


def read_ceiling() -> dict[str, float]:
    """GB/s of each way to read memory."""
    read = plain_reads()
    for batch, held in CONTEXTS:
        seconds, nbytes = cudnn_decode(batch, held)
        if seconds is not None:
            read[f"cuDNN decode attention, {batch} x {held}"] = giga(nbytes, seconds)
    return read


def plain_reads() -> dict[str, float]:
    """GB/s of PyTorch's sum, and of a kernel that reads and writes (a graph's copy is no kernel, and slower)."""
    data = torch.randn(READ_BYTES // 4, device="cuda")
    source, target = data.chunk(2)
    calls: dict[str, Call] = {
        "torch.sum": data.sum,
        "torch.neg, read and written": lambda: torch.neg(source, out=target),
    }
    return {name: giga(data.nbytes, graph_times([call]).median) for name, call in calls.items()}


def fp16_rates() -> dict[str, float]:
    """TFLOP/s of one big product, for some milliseconds and for long."""
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.float16) for _ in range(2))
    product = partial(torch.mm, a, b)
    product()
    rest()
    short = min(call_seconds(product, 10))
    long = graph_times([product]).median
    return {
        f"fp16 product of {SIZE}": 2 * SIZE**3 / short / 1e12,
        "the same, sustained": 2 * SIZE**3 / long / 1e12,
    }


def cudnn_decode(batch: int, held: int) -> tuple[float | None, int]:
    """Seconds of one query a sequence over fp16 keys and values, None without cuDNN's kernel; bytes read."""
    shape = (batch, KV_HEADS, held, HEAD_DIM)
    k, v = (torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(2))
    q = torch.randn(batch, HEADS, 1, HEAD_DIM, device="cuda", dtype=torch.float16)
    return cudnn_seconds([attend(q, k, v)]), k.nbytes + v.nbytes


def attend(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """PyTorch's attention with grouped heads."""
    return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def cudnn_seconds(calls: list[Callable[[], Tensor]]) -> float | None:
    """Seconds a call with cuDNN's kernel; None where this torch or GPU has none for it."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        try:
            calls[0]()
        except RuntimeError:  # "No available kernel"
            return None
        return graph_times(calls).median
