"""Marlin, the 4-bit product of vLLM, where vLLM is installed. Its library alone is loaded: vLLM itself asks for one torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from nybble.benchmarks.gpu_timing import copies, graph_times
from nybble.benchmarks.random_matrix import random_words

# vLLM's number for codes of 4 bits less 8: bits of the mantissa from bit 8 on, the 8 from bit 17 on, IEEE's NaN from bit 50 on.
UINT4_LESS_8 = 4 << 8 | 8 << 17 | 1 << 50


def missing() -> str | None:
    """Make vLLM's ops known to torch; a text says why they cannot be."""
    if hasattr(torch.ops._C, "marlin_gemm"):
        return None
    spec = find_spec("vllm")
    folders = (spec.submodule_search_locations or []) if spec else []
    libraries = [path for folder in folders for path in Path(folder).glob("_C*.so")]
    if not libraries:
        return "Marlin is not measured: pip install vllm"
    try:
        for path in libraries:
            torch.ops.load_library(path)
    except OSError as error:
        return f"Marlin is not measured: vllm's library does not load: {error}"
    if not hasattr(torch.ops._C, "marlin_gemm"):
        return "Marlin is not measured: this vllm has none"
    return None


def marlin(K: int, N: int, group: int, rows: Sequence[int]) -> Iterator[tuple[int, float]]:
    """M and seconds of ``[M, K] @ [K, N]``, float16, random codes and scales; nothing where ``missing`` says why."""
    if missing() is not None:
        return
    turn = [_weight(K, N, group) for _ in range(copies(K * N // 2))]
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    workspace = torch.zeros(processors, device="cuda", dtype=torch.int32)
    for M in rows:
        x = torch.randn(M, K, device="cuda", dtype=torch.float16)
        yield M, graph_times([partial(product, x, *weight, workspace) for weight in turn]).median


def _weight(K: int, N: int, group: int) -> tuple[Tensor, Tensor]:
    """Codes in Marlin's order, and scales."""
    codes = random_words(K // 8, N)
    scales = torch.rand(K // group, N, device="cuda", dtype=torch.float16)
    return torch.ops._C.gptq_marlin_repack(codes, K, N, 4, False), scales


def product(x: Tensor, codes: Tensor, scales: Tensor, workspace: Tensor) -> Tensor:
    """Marlin's, with sums in float32."""
    size = x.shape[0], scales.shape[1], x.shape[1]
    nothing = (None, None, None)
    result: Tensor = torch.ops._C.marlin_gemm(
        x, None, codes, None, scales, *nothing, workspace, UINT4_LESS_8, *size, False, True, False
    )
    return result
