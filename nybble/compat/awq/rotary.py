"""Rotary embeddings of ``awq_inference_engine``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args
from nybble.compat.awq import _check


def rotary_embedding_neox(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, /
) -> None:
    """``(a, b) -> (a cos - b sin, b cos + a sin)`` for channels i and i + R/2, in place on query and key.

    Each product, sum and difference is rounded to the tensors' dtype, as the old kernel does.

    Args:
        positions: int64, one a token, each a row of cos_sin_cache.
        query, key: ``[b, s, ..., D]``, b * s tokens, float16, bfloat16, float32 or float64; written.
        head_size: D.
        cos_sin_cache: ``[P, R]`` in query's dtype, R/2 cosines, then R/2 sines; R even, at most head_size.

    Raises ``RuntimeError`` naming what does not fit.
    """
    D = _args.integer("head_size", head_size)
    _check.tensors(positions=positions, query=query, key=key, cos_sin_cache=cos_sin_cache)
    _check.dtype("positions", positions, torch.int64)
    _check.one_of("rotary_embedding_neox", query, (*_check.FLOATS, torch.float64))
    _check.dtype("key", key, query.dtype)
    _check.dtype("cos_sin_cache", cos_sin_cache, query.dtype)
    _check.shape("cos_sin_cache", cos_sin_cache, None, None)
    P, R = cos_sin_cache.shape
    _check.require(R % 2 == 0 and R <= D, f"cos_sin_cache turns {R} channels of {D}")
    for name, x in (("query", query), ("key", key)):
        _check.require(
            x.dim() >= 3 and x.shape[-1] == D,
            f"{name} has shape {list(x.shape)}, expected [b, s, ..., {D}]",
        )
        _check.elements("positions", positions, x.shape[0] * x.shape[1])
    _check.require(
        not positions.numel() or 0 <= int(positions.min()) <= int(positions.max()) < P,
        f"positions has one outside 0 to {P - 1}",
    )
    cos, sin = cos_sin_cache[positions.reshape(-1)].chunk(2, -1)
    for x in (query, key):
        ones = [1] * (x.dim() - 3)
        c, s = (t.view(*x.shape[:2], *ones, R // 2) for t in (cos, sin))
        a, b = x[..., : R // 2], x[..., R // 2 : R]
        # Both before either is stored: a and b are views of x.
        first, second = a * c - b * s, b * c + a * s
        a.copy_(first)
        b.copy_(second)


def fused_rope_with_pos_forward_func(
    input: Tensor,
    freqs: Tensor,
    transpose_output_memory: bool,
    /,
) -> Tensor:
    """Turn the first d2 channels by the angles in freqs, pairing j with j + d2/2; the other channels are copied.

    Args:
        input: ``[A0, A1, H, D]`` float16, bfloat16 or float32.
        freqs: float32 angles, laid out ``[A1, A0, d2]`` in any shape that ends in d2; d2 even, at most D.
        transpose_output_memory: lay the result out as ``[A1, A0, H, D]`` and return its transpose.

    Returns ``[A0, A1, H, D]`` in input's dtype. Raises ``RuntimeError`` naming what does not fit.
    """
    transposed = _args.boolean("transpose_output_memory", transpose_output_memory)
    _check.tensors(input=input, freqs=freqs)
    _check.one_of("nvte_fused_rope_forward", input, _check.FLOATS)
    _check.dtype("freqs", freqs, torch.float32)
    _check.shape("input", input, None, None, None, None)
    A0, A1, _, D = input.shape
    d2 = freqs.shape[-1] if freqs.dim() else 0
    _check.require(d2 % 2 == 0 and d2 <= D, f"freqs turns {d2} channels of {D}")
    _check.elements("freqs", freqs, A0 * A1 * d2)
    laid = input.transpose(0, 1) if transposed else input
    out = laid.clone(memory_format=torch.contiguous_format)
    angles = freqs.reshape(A1, A0, d2)
    angles = angles if transposed else angles.transpose(0, 1)
    if out.numel() and d2:
        _turn(out, angles)
    return out.transpose(0, 1) if transposed else out


def _turn(x: Tensor, angles: Tensor) -> None:
    """``x_j cos(angle_j) -+ x_pair sin(angle_j)`` in place, x ``[A, B, H, D]``, angles ``[A, B, d2]``."""
    half = angles.shape[-1] // 2
    left, right = angles[..., :half], angles[..., half:]
    if torch.equal(left, right):  # one angle a pair, as every caller gives
        flat = left.reshape(-1, half)
        places = torch.arange(flat.shape[0], device=x.device).view(x.shape[:2])
        ops.rope_(x, flat.cos(), flat.sin(), places)
        return
    left, right = left[:, :, None], right[:, :, None]
    a, b = x[..., :half].float(), x[..., half : 2 * half].float()
    first, second = a * left.cos() - b * left.sin(), b * right.cos() + a * right.sin()
    x[..., :half], x[..., half : 2 * half] = first.to(x.dtype), second.to(x.dtype)
