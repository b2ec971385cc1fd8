"""Quantized keys and values: exact to the bit, as each step's rounding is part of the contract."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tests.cases.base import Case


def rotate(x: np.ndarray) -> np.ndarray:
    """``[n, 64]`` half: the transform lane by lane, as it is written down."""
    parts = [x[:, 0::2].copy(), x[:, 1::2].copy()]
    lanes = np.arange(32)
    for i in (1, 2, 4, 8, 16):
        sign = np.where(lanes & i, -1, 1).astype(np.float16)
        parts = [u * sign + u[:, lanes ^ i] for u in parts]
    y = np.empty_like(x)
    y[:, 0::2], y[:, 1::2] = parts
    return y


def quantize(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes one a byte and scales of ``[n, 64]`` half."""
    c = 1 << (bits - 1)
    y = rotate(x).reshape(-1, 2, 32)
    largest = np.fmax.reduce(abs(y), axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        exact = (y / largest).astype(np.float64) * c + c  # a double holds it; one rounding follows
        q = np.rint(exact.astype(np.float16).astype(np.float64))
    q = np.where(q > 0, np.minimum(q, 2 * c - 1), 0)  # NaN too is 0
    return q.reshape(-1, 64).astype(np.uint8), (largest * np.float16(1 / c)).reshape(-1, 2)


def dequantize(q: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    y = (q.astype(np.float16) - np.float16(1 << (bits - 1))).reshape(-1, 2, 32) * scales[..., None]
    return rotate(y.reshape(-1, 64)) * np.float16(1 / 32)


def kv_case(name: str, x: Tensor, runs: list[tuple[int, int]], bits: int) -> Iterator[Case]:
    """Both directions. What no run covers holds a value that must still be there afterwards."""
    *tokens, D = x.shape
    codes = torch.full((*tokens, D * bits // 8), 0x5A, dtype=torch.uint8)
    scales = torch.full((*tokens, D // 32), -7.0, dtype=torch.float16)
    back = torch.full_like(x, -9.0)
    where = torch.tensor(runs, dtype=torch.int64).view(-1, 2)
    empty = codes.clone(), scales.clone()
    T = x.shape[2] * D
    for begin, end in runs:
        first, last = begin * T // 64, end * T // 64
        q, s = quantize(x.reshape(-1, 64)[first:last].numpy(), bits)
        packed = q if bits == 8 else q[:, ::2] | q[:, 1::2] << 4
        codes.view(-1, 8 * bits)[first:last] = torch.from_numpy(packed)
        scales.view(-1, 2)[first:last] = torch.from_numpy(s)
        back.view(-1, 64)[first:last] = torch.from_numpy(dequantize(q, s, bits))
    yield Case(
        "kv_quantize_",
        name,
        (*empty, x, where, bits),
        (codes.long(), scales.double()),
        written=(0, 1),
    )
    yield Case(
        "kv_dequantize_",
        name,
        (torch.full_like(x, -9.0), codes, scales, where, bits),
        back.double(),
    )


def kv_cases() -> Iterator[Case]:
    for bits in (4, 8):
        for shape, runs in (
            ((1, 1, 1, 64), [(0, 1)]),
            ((2, 5, 3, 64), [(0, 10)]),
            ((3, 8, 5, 128), [(1, 4), (4, 4), (9, 24)]),
            ((1, 6, 1, 32), [(4, 6), (0, 2)]),  # two tokens share a group
            ((2, 9, 1, 96), [(2, 4), (6, 18)]),
            ((2, 4, 8, 128), []),
            ((0, 4, 2, 64), [(0, 0)]),
            ((4, 64, 4, 64), [(0, 100), (200, 256)]),
        ):
            x = (torch.randn(shape) * 2).half()
            name = f"w{bits}-{'x'.join(map(str, shape))}-{len(runs)}runs"
            yield from kv_case(name, x, runs, bits)
        wild = torch.randn(1, 16, 1, 64) * torch.logspace(-8, 2, 16).view(1, 16, 1, 1)
        wild[0, 0] = 0.0
        wild[0, 1] = 0.0
        wild[0, 1, 0, 5] = 1900.0  # alone in its group; 32 times that is still a half number
        wild[0, 2] = 2.0**-24
        yield from kv_case(f"w{bits}-wild", wild.half(), [(0, 16)], bits)
        odd = torch.randn(2 * 9 * 2 * 32 + 1).half()[1:].view(2, 9, 2, 32)
        yield from kv_case(f"w{bits}-odd-address", odd, [(1, 3), (4, 17)], bits)


def fp8_cases() -> Iterator[Case]:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    for name, x in (
        ("all-finite", finite),
        ("rows", finite[:5005].view(5, 7, 143)),
        ("swapped", finite[:5000].view(4, 1250).t()),
        ("empty", finite[:0].view(0, 3)),
        ("part", finite[:9600].view(40, 240)[:, 16:120]),
        ("odd-address", finite[3:4000]),
    ):
        codes = (x.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF) >> 8
        yield Case("fp8_encode_", name, (torch.zeros_like(x, dtype=torch.uint8), x), codes.long())
        cut = x.double()
        kept = (codes << 8).to(torch.int16).view(torch.float16).double()
        assert bool((kept.abs() <= cut.abs()).all())  # truncation goes towards zero
        yield Case("fp8_decode_", name, (torch.zeros_like(x), codes.to(torch.uint8)), kept)
