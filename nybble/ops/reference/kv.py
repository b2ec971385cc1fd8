"""Meaning of ``kv_quantize_``, ``kv_dequantize_``, ``fp8_encode_`` and ``fp8_decode_``.

Plain half arithmetic: every operation below rounds its result to half, as the ops must.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nybble.ops.reference import check

GROUP = 64


def kv_quantize_(codes: Tensor, scales: Tensor, x: Tensor, runs: Tensor, bits: int) -> None:
    """Rotates groups of 64, then ``code = round(y / max |y| * c + c)``, ``scale = max |y| / c`` for each half of a group."""
    c = 1 << (bits - 1)
    for one, code, scale in _runs("kv_quantize_", x, codes, scales, runs, bits):
        y = _rotate(one).unflatten(-1, (2, GROUP // 2))
        largest = y.abs().nan_to_num(nan=0.0, posinf=torch.inf).amax(-1, keepdim=True)
        # The product with a power of two is exact: one rounding, as of a fused operation.
        q = (y / largest * c + c).round().clamp(0, 2 * c - 1).nan_to_num(nan=0.0).to(torch.uint8)
        q = q.flatten(-2)
        code.copy_(q if bits == 8 else q[:, ::2] | q[:, 1::2] << 4)
        scale.copy_(largest.squeeze(-1) * (1 / c))


def kv_dequantize_(x: Tensor, codes: Tensor, scales: Tensor, runs: Tensor, bits: int) -> None:
    """``y = (code - c) * scale``, rotated back: the rotation again, over 32."""
    c = 1 << (bits - 1)
    for one, code, scale in _runs("kv_dequantize_", x, codes, scales, runs, bits):
        q = code if bits == 8 else torch.stack([code & 15, code >> 4], -1).flatten(-2)
        y = (q.to(torch.float16) - c).unflatten(-1, (2, GROUP // 2)) * scale.unsqueeze(-1)
        one.copy_(_rotate(y.flatten(-2)) * (1 / 32))


def fp8_encode_(codes: Tensor, x: Tensor) -> None:
    """The upper byte of each half."""
    _fp8("fp8_encode_", codes, x)
    codes.copy_(x.contiguous().view(torch.int16).bitwise_right_shift(8))


def fp8_decode_(x: Tensor, codes: Tensor) -> None:
    """Each byte as the upper one of a half."""
    _fp8("fp8_decode_", codes, x)
    x.copy_(codes.to(torch.int16).bitwise_left_shift(8).view(torch.float16))


def _rotate(x: Tensor) -> Tensor:
    """``[..., 64]``: elements of even and of odd index, each a vector of 32, times the Hadamard matrix in half additions."""
    for step in (2, 4, 8, 16, 32):
        low, high = x.unflatten(-1, (-1, 2, step)).unbind(-2)
        x = torch.stack([low + high, low - high], -2).flatten(-3)
    return x


def _runs(
    op: str, x: Tensor, codes: Tensor, scales: Tensor, runs: Tensor, bits: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Checks everything, then gives each run's groups: x ``[n, 64]``, codes ``[n, 64 bits/8]``, scales ``[n, 2]``."""
    check.require(bits in (4, 8), f"{op}: bits is {bits}, expected 4 or 8")
    check.dtype(op, torch.float16, x=x, scales=scales)
    check.dtype(op, torch.uint8, codes=codes)
    check.dtype(op, torch.int64, runs=runs)
    check.rank(op, "x", x, "P, S, H, D", 4)
    D = x.shape[-1]
    check.require(D % 32 == 0, f"{op}: x has D = {D}, expected a multiple of 32")
    check.shape(op, "codes", codes, "P, S, H, D bits/8", *x.shape[:3], D // 8 * bits)
    check.shape(op, "scales", scales, "P, S, H, D/32", *x.shape[:3], D // 32)
    for name, t in (("x", x), ("codes", codes), ("scales", scales)):
        check.require(t.is_contiguous(), f"{op}: {name} is not contiguous")
    check.rank(op, "runs", runs, "n, 2", 2)
    check.shape(op, "runs", runs, "n, 2", runs.shape[0], 2)
    N, T = x.shape[0] * x.shape[1], x.shape[2] * D
    if x.numel() == 0:
        N, T = 0, GROUP
    for begin, end in runs.tolist():
        check.require(
            0 <= begin <= end <= N,
            f"{op}: a run is {begin} to {end}, expected tokens in order from 0 to {N}",
        )
        check.require(
            begin * T % GROUP == 0 and end * T % GROUP == 0,
            f"{op}: a run is {begin} to {end} tokens of {T} elements, expected whole groups of {GROUP}",
        )
    flat = [t.view(-1) for t in (x, codes, scales)]
    for begin, end in runs.tolist():
        first, last = begin * T // GROUP, end * T // GROUP
        if first < last:
            a, b, c = (
                t[first * width : last * width].view(-1, width)
                for t, width in zip(flat, (GROUP, GROUP * bits // 8, 2), strict=True)
            )
            yield a, b, c


def _fp8(op: str, codes: Tensor, x: Tensor) -> None:
    check.dtype(op, torch.uint8, codes=codes)
    check.dtype(op, torch.float16, x=x)
    check.require(x.dim() >= 1, f"{op}: x has shape [], expected [..., D]")
    check.require(
        codes.shape == x.shape, f"{op}: codes and x have different shapes; expected the same"
    )
