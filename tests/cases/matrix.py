"""Cases of ``dequantize``."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nybble.ops.packed import make_packed
from tests.cases.base import DTYPES, F32, Case, rounding


def dequantize_case(
    name: str,
    rows: list[tuple[int, int]],
    N: int,
    *,
    dtype: torch.dtype = torch.float16,
    zeros: bool = False,
    shuffled: bool = False,
) -> Case:
    """``rows`` is a list of (rows, bits), one a group. Expected is the formula on the codes that were packed."""
    counts, bits = (torch.tensor(column) for column in zip(*rows, strict=True))
    K, G = int(counts.sum()), len(rows)
    groups = torch.repeat_interleave(torch.arange(G), counts)
    codes = (torch.rand(K, N) * (2.0 ** bits[groups])[:, None]).to(torch.uint8)
    scales = (torch.rand(G, N) * 0.02 + 2**-20).half()  # some of them subnormal
    zero = torch.rand(G, N) * 16 if zeros else (2.0 ** (bits - 1))[:, None].expand(G, N)
    perm = torch.randperm(K) if shuffled else torch.arange(K)
    m = make_packed(
        codes,
        scales,
        bits,
        groups,
        zeros=zero if zeros else None,
        perm=perm if shuffled else None,
    )
    expected = torch.empty(K, N, dtype=torch.float64)
    expected[perm] = (codes.double() - zero.double()[groups]) * scales.double()[groups]
    # One rounding of the difference, one of the product, one to the dtype; the first two only with fractional zeros.
    bound = 4 * F32 * expected.abs() + rounding(expected, dtype)
    args = (m.weight, m.scales, m.zeros, m.perm, m.blocks, m.K, m.N, dtype)
    return Case("dequantize", f"{name}-{str(dtype)[6:]}", args, expected, bound)


def dequantize_cases() -> Iterator[Case]:
    mixed = [(32, 8), (64, 6), (32, 5), (96, 4), (32, 3), (48, 2)]
    for dtype in DTYPES:
        yield dequantize_case("mixed", mixed, 40, dtype=dtype, shuffled=True)
        yield dequantize_case("zeros", [(128, 4), (128, 4)], 16, dtype=dtype, zeros=True)
    yield dequantize_case("in-order", mixed, 33)
    yield dequantize_case("short-groups", [(7, 4), (1, 8), (40, 3)], 17, shuffled=True)
    yield dequantize_case("one-column", [(32, 2)], 1)
    yield dequantize_case("wide", [(32, 5), (32, 2)], 700, shuffled=True)
    yield dequantize_case("no-columns", [(32, 4)], 0)
    yield dequantize_case("no-rows", [(0, 4)], 8)
