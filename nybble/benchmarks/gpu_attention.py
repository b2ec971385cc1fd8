"""``paged_attention`` on a GPU: one new token a sequence, beside cuDNN on caches without pages and beside the memory's floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nybble import ops
from nybble.benchmarks.gpu_timing import copies, graph_times

HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 128, 256
CASES = ((1, 4096), (1, 32768), (8, 4096), (8, 32768), (64, 4096))  # sequences, tokens of each
STORAGES = ("plain", "fp8", "q8", "q4", "q8/q4")
BYTES_PER_US = 4.55e6  # read by an H200, measured


@dataclass(frozen=True)
class Row:
    """One measurement: microseconds; ``share`` of the memory floor, ``ratio`` to cuDNN on float16 caches (above 1: faster)."""

    case: str
    storage: str
    us: float
    floor_us: float
    share: float
    cudnn_us: float
    ratio: float


def _width(kind: str) -> float:
    """Bytes of a channel."""
    return {"plain": 2.0, "fp8": 1.0, "q8": 1.0625, "q4": 0.5625}[kind]


def _stored(B: int, S: int, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Random keys or values of B sequences, as pages."""
    shape = (B * -(-S // PAGE), PAGE, KV_HEADS)
    if kind == "plain":
        return torch.randn(*shape, HEAD_DIM, device="cuda", dtype=dtype), None
    if kind == "fp8":
        x = torch.randn(*shape, HEAD_DIM, device="cuda", dtype=torch.float16)
        return (x.view(torch.int16) >> 8).to(torch.uint8), None
    codes = torch.randint(
        256, (*shape, HEAD_DIM * int(kind[1:]) // 8), device="cuda", dtype=torch.uint8
    )
    scales = torch.rand(*shape, HEAD_DIM // 32, device="cuda") + 0.5
    return codes, (scales / (1 << int(kind[1:]) - 1)).half()


def _ours(B: int, S: int, storage: str, dtype: torch.dtype) -> float:
    kinds = (storage.split("/") * 2)[:2]
    nbytes = B * S * KV_HEADS * HEAD_DIM * sum(map(_width, kinds))
    q = torch.randn(B, 1, HEADS, HEAD_DIM, device="cuda", dtype=dtype)
    pages = -(-S // PAGE)
    table = torch.randperm(B * pages, device="cuda").int().view(B, pages)
    lengths = torch.full((B,), S, device="cuda")

    def call() -> Callable[[], object]:
        (k, ks), (v, vs) = (_stored(B, S, kind, dtype) for kind in kinds)
        return lambda: ops.paged_attention(q, k, v, table, lengths, key_scales=ks, value_scales=vs)

    return 1e6 * graph_times([call() for _ in range(copies(int(nbytes)))]).median


def _cudnn(B: int, S: int) -> float:
    q = torch.randn(B, HEADS, 1, HEAD_DIM, device="cuda", dtype=torch.float16)
    nbytes = 4 * B * S * KV_HEADS * HEAD_DIM

    def call() -> Callable[[], object]:
        k, v = torch.randn(2, B, KV_HEADS, S, HEAD_DIM, device="cuda", dtype=torch.float16)
        return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return 1e6 * graph_times([call() for _ in range(copies(nbytes))]).median


def run(
    cases: Sequence[tuple[int, int]] = CASES,
    storages: Sequence[str] = STORAGES,
    dtype: torch.dtype = torch.float16,
) -> Iterator[Row]:
    """A row for each case and storage, as it is measured."""
    for B, S in cases:
        cudnn_us = _cudnn(B, S)
        for storage in storages:
            torch.cuda.empty_cache()
            us = _ours(B, S, storage, dtype)
            width = sum(map(_width, (storage.split("/") * 2)[:2]))
            floor_us = B * S * KV_HEADS * HEAD_DIM * width / BYTES_PER_US
            yield Row(f"{B}x{S}", storage, us, floor_us, floor_us / us, cudnn_us, cudnn_us / us)
