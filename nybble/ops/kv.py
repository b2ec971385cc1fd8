"""Keys and values made small: ``kv_quantize_`` and ``fp8_encode_``, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake

_kv_quantize = torch.ops.nybble.kv_quantize_.default
_kv_dequantize = torch.ops.nybble.kv_dequantize_.default
_fp8_encode = torch.ops.nybble.fp8_encode_.default
_fp8_decode = torch.ops.nybble.fp8_decode_.default


def kv_quantize_(codes: Tensor, scales: Tensor, x: Tensor, runs: Tensor, *, bits: int) -> None:
    """``code = round(y / max |y| * c + c)``, ``scale = max |y| / c``, where ``y`` is x rotated and ``c = 2^(bits - 1)``.

    Groups of 64 elements, flat over the heads of a token, are rotated: the 32 of even and the 32 of odd index are each
    multiplied by the Hadamard matrix, which spreads outliers. Each half of a group has its own scale. Every step rounds to half
    precision, so that codes are those of ExLlamaV2's caches; NaN gets code 0. Keys in 8 and values in 4 bits are its Q6.

    Args:
        codes: uint8 ``[P, S, H, D * bits / 8]``, changed; of two 4-bit codes in a byte the first is the low one.
        scales: float16 ``[P, S, H, D / 32]``, changed.
        x: float16 ``[P, S, H, D]``: P pages or sequences of S tokens, D a multiple of 32.
        runs: int64 ``[n, 2]``; only tokens ``begin`` to ``end - 1`` of the ``P * S`` are touched, whole groups each time
            (any tokens where ``H * D`` is a multiple of 64). See :func:`~nybble.ops.paged_runs`.
        bits: 4 or 8.

    All but ``runs`` contiguous. Raises ``RuntimeError`` naming what does not fit; on a GPU the numbers in ``runs`` are not
    looked at, and nothing outside the caches is touched.

    >>> x = torch.ones(1, 1, 2, 32, dtype=torch.float16)
    >>> codes, scales = torch.zeros(1, 1, 2, 32, dtype=torch.uint8), torch.zeros(1, 1, 2, 1, dtype=torch.float16)
    >>> kv_quantize_(codes, scales, x, torch.tensor([[0, 1]]), bits=8)
    >>> codes.flatten()[:4].tolist(), scales.flatten().tolist()
    ([255, 255, 128, 128], [0.25, 0.0])
    """
    ensure_loaded()
    _kv_quantize(codes, scales, x, runs, bits)


def kv_dequantize_(x: Tensor, codes: Tensor, scales: Tensor, runs: Tensor, *, bits: int) -> Tensor:
    """``x = rotate((code - c) * scale) / 32``: what :func:`kv_quantize_` stored, as half numbers.

    Args: as :func:`kv_quantize_`; ``x`` is changed, in the tokens of ``runs`` only.

    Returns ``x``. Raises ``RuntimeError`` naming what does not fit.

    >>> codes, scales = torch.zeros(1, 1, 2, 32, dtype=torch.uint8), torch.zeros(1, 1, 2, 1, dtype=torch.float16)
    >>> runs, x = torch.tensor([[0, 1]]), torch.ones(1, 1, 2, 32, dtype=torch.float16)
    >>> kv_quantize_(codes, scales, x, runs, bits=8)
    >>> kv_dequantize_(x, codes, scales, runs, bits=8).unique()
    tensor([0.9922], dtype=torch.float16)
    """
    ensure_loaded()
    _kv_dequantize(x, codes, scales, runs, bits)
    return x


def fp8_encode_(codes: Tensor, x: Tensor) -> Tensor:
    """``codes = bits(x) >> 8``: half numbers cut, not rounded, to float8 e5m2.

    Args:
        codes: uint8 ``[..., D]``, any strides; changed in place.
        x: float16 of the same shape, any strides.

    Returns ``codes``. Raises ``RuntimeError`` naming what does not fit.

    >>> fp8_encode_(torch.zeros(2, dtype=torch.uint8), torch.tensor([1.0, -1.9]).half()).tolist()
    [60, 191]
    """
    ensure_loaded()
    _fp8_encode(codes, x)
    return codes


def fp8_decode_(x: Tensor, codes: Tensor) -> Tensor:
    """``bits(x) = codes << 8``: float8 e5m2 as half numbers, exactly.

    Args:
        x: float16 ``[..., D]``, any strides; changed in place.
        codes: uint8 of the same shape, any strides.

    Returns ``x``. Raises ``RuntimeError`` naming what does not fit.

    >>> fp8_decode_(torch.zeros(2, dtype=torch.float16), torch.tensor([60, 191], dtype=torch.uint8)).tolist()
    [1.0, -1.75]
    """
    ensure_loaded()
    _fp8_decode(x, codes)
    return x


@register_fake("nybble::kv_quantize_")
def _(codes: Tensor, scales: Tensor, x: Tensor, runs: Tensor, bits: int) -> None:
    return None


@register_fake("nybble::kv_dequantize_")
def _(x: Tensor, codes: Tensor, scales: Tensor, runs: Tensor, bits: int) -> None:
    return None


@register_fake("nybble::fp8_encode_")
def _(codes: Tensor, x: Tensor) -> None:
    return None


@register_fake("nybble::fp8_decode_")
def _(x: Tensor, codes: Tensor) -> None:
    return None
