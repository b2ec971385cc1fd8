"""The quantized product on a GPU beside its floor, its target, fp16 cuBLAS, PyTorch's own 4-bit kernel, Marlin and ExLlamaV2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nybble import ops
from nybble.benchmarks import gpu_cases, gpu_exllamav2, gpu_marlin
from nybble.benchmarks.gpu_cases import Weight
from nybble.benchmarks.gpu_ceiling import Ceiling
from nybble.benchmarks.gpu_timing import copies, graph_times
from nybble.benchmarks.random_matrix import random_mixture
from nybble.benchmarks.report import Section
from nybble.ops import _native
from nybble.ops.packed import PackedMatrix

INT4PACK_ROWS = 32  # beyond, PyTorch's 4-bit kernel takes many times cuBLAS's time
INNER_TILES = 8  # of its layout
MARLIN_ROWS = 256  # beyond, Marlin takes 1.6 times cuBLAS's time
INVARIANT_ROWS = 64  # beyond, the time grows with the rows
Seconds = dict[int, float]  # by M


@dataclass(frozen=True)
class Ours:
    """Our seconds; empty where the library has no kernel: the reference is not timed."""

    nbytes: int  # of one matrix
    plain: Seconds
    invariant: Seconds  # where a row's result may not depend on the batch


@dataclass(frozen=True)
class Baselines:
    """Others' seconds a product, of one K and N."""

    cublas: Seconds
    int4pack: Seconds  # empty where this torch or GPU has no such kernel
    marlin: Seconds  # empty without vLLM


def bytes_moved(nbytes: int, K: int, N: int, M: int) -> int:
    """A matrix of ``nbytes`` and fp16 activations read once, results written once.

    >>> bytes_moved(1000, 10, 20, 3)
    1180
    """
    return nbytes + 2 * M * (K + N)


def figures(
    weight: Weight,
    M: int,
    nbytes: int,
    seconds: float | None,
    others: dict[str, float | None],
    ceiling: Ceiling,
) -> dict[str, Any]:
    """One row of the table; ``others``: what else was measured, in seconds."""
    K, N = weight.K, weight.N
    floor = ceiling.floor(bytes_moved(nbytes, K, N, M), 2.0 * M * K * N)
    wanted = gpu_cases.target(weight, M)
    limit = None if wanted is None else wanted.seconds(others)
    cublas, int4pack = others["cublas"], others["int4pack"]
    return {
        "weight": weight.name,
        "K": K,
        "N": N,
        "M": M,
        "us": _us(seconds),
        "target_us": _us(limit),
        "met": None if seconds is None or limit is None else seconds <= limit,
        "floor_us": _us(floor),
        "share_of_floor": None if seconds is None else floor / seconds,
        "cublas_us": _us(cublas),
        "int4pack_us": _us(int4pack),
        "marlin_us": _us(others["marlin"]),
        "exllamav2_us": _us(others["exllamav2"]),
        "times_cublas": None if seconds is None or cublas is None else cublas / seconds,
        "invariant_us": _us(others["invariant"]),
    }


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def parts(weight: Weight, alone: dict[tuple[int, int, int], float]) -> float | None:
    """Each width's time for a whole matrix, by the share of the rows that have it; None where one was not measured.

    ``alone``: seconds at one row by bits, K and N.

    >>> mixed = Weight("", 128, 32, gpu_cases.mixture(128, ((4, 0.25, 32), (3, 0.75, 32))))
    >>> parts(mixed, {(4, 128, 32): 4.0, (3, 128, 32): 2.0})
    2.5
    """
    sum_ = 0.0
    for bits in {segment.bits for segment in weight.segments}:
        seconds = alone.get((bits, weight.K, weight.N))
        if seconds is None:
            return None
        sum_ += weight.share(bits) * seconds
    return sum_


def measure_ours(weight: Weight) -> Ours:
    """The matrix at all its numbers of rows, over copies that take turns."""
    make = partial(
        random_mixture,
        weight.K,
        weight.N,
        weight.segments,
        "cuda",
        permuted=weight.permuted,
        zeros=weight.zeros,
    )
    first = make()
    if "CUDA" not in _native.native_devices("qmatmul"):
        return Ours(first.nbytes, {}, {})
    matrices = [first, *(make() for _ in range(copies(first.nbytes) - 1))]
    rows = gpu_cases.rows_of(weight)
    plain = {M: _time_ours(matrices, M, invariant=False) for M in rows}
    alone = {M: _time_ours(matrices, M, invariant=True) for M in rows if 1 < M <= INVARIANT_ROWS}
    return Ours(first.nbytes, plain, alone)


def _time_ours(matrices: list[PackedMatrix], M: int, *, invariant: bool) -> float:
    x = torch.randn(M, matrices[0].K, device="cuda", dtype=torch.float16)
    product = partial(ops.qmatmul, x, invariant=invariant)
    return graph_times([partial(product, matrix) for matrix in matrices]).median


def measure_baselines(K: int, N: int) -> Baselines:
    """fp16 by cuBLAS at every M, PyTorch's 4-bit kernel up to ``INT4PACK_ROWS``, Marlin up to ``MARLIN_ROWS``."""
    dense = torch.randn(N, K, device="cuda", dtype=torch.float16)
    turn = [dense, *(dense.clone() for _ in range(copies(dense.nbytes) - 1))]
    cublas = {M: _time_linear(turn, M) for M in gpu_cases.ROWS}
    del dense, turn
    rows = [M for M in gpu_cases.ROWS if M <= MARLIN_ROWS]
    return Baselines(
        cublas, dict(_int4pack(K, N)), dict(gpu_marlin.marlin(K, N, gpu_cases.GROUP, rows))
    )


def measure_exllamav2(weight: Weight) -> Seconds:
    """What EXL2 holds: no zeros."""
    return {} if weight.zeros else dict(gpu_exllamav2.exllamav2(weight, gpu_cases.rows_of(weight)))


def _time_linear(turn: list[Tensor], M: int) -> float:
    x = torch.randn(M, turn[0].shape[1], device="cuda", dtype=torch.float16)
    return graph_times([partial(F.linear, x, weight) for weight in turn]).median


def _int4pack(K: int, N: int) -> Iterator[tuple[int, float]]:
    """Seconds by M, in bfloat16, which is all it has."""
    if torch.cuda.get_device_capability() < (8, 0):
        return
    codes = torch.randint(0, 256, (N, K // 2), device="cuda", dtype=torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, INNER_TILES)
    scales = torch.rand(K // gpu_cases.GROUP, N, 2, device="cuda", dtype=torch.bfloat16)
    turn = [(packed.clone(), scales.clone()) for _ in range(copies(packed.nbytes + scales.nbytes))]
    for M in gpu_cases.ROWS:
        if M <= INT4PACK_ROWS:
            x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
            product = partial(torch.ops.aten._weight_int4pack_mm, x)
            yield M, graph_times([partial(product, w, gpu_cases.GROUP, s) for w, s in turn]).median


def section(ceiling: Ceiling) -> Section:
    """Every case of ``gpu_cases``."""
    others: dict[tuple[int, int], Baselines] = {}
    alone: dict[tuple[int, int, int], float] = {}
    rows = []
    for reason in (gpu_marlin.missing(), gpu_exllamav2.missing()):
        if reason is not None:
            print(reason, file=sys.stderr)
    for weight in gpu_cases.weights():
        print(f"{weight.name}, {weight.K} x {weight.N}", file=sys.stderr)  # it takes half a minute
        shape = weight.K, weight.N
        if shape not in others:
            others[shape] = measure_baselines(*shape)
        ours = measure_ours(weight)
        exllamav2 = measure_exllamav2(weight)
        if weight.name == f"{weight.segments[0].bits} bits" and 1 in ours.plain:
            alone[(weight.segments[0].bits, weight.K, weight.N)] = ours.plain[1]
        for M in gpu_cases.rows_of(weight):
            compared = {
                "cublas": others[shape].cublas.get(M),
                "int4pack": others[shape].int4pack.get(M),
                "marlin": others[shape].marlin.get(M),
                "exllamav2": exllamav2.get(M),
                "parts": parts(weight, alone),
                "invariant": ours.invariant.get(M),
            }
            rows.append(figures(weight, M, ours.nbytes, ours.plain.get(M), compared, ceiling))
    title = f"[M, K] @ [K, N], float16, group {gpu_cases.GROUP} unless a mixture"
    return Section("qmatmul", title, rows)
