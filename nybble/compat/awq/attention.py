"""``single_query_attention``, of ``awq_inference_engine`` and ``ft_attention``."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args
from nybble.compat.awq import _check


def single_query_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    length_per_sample_: Tensor | None,
    alibi_slopes_: Tensor | None,
    timestep: int,
    rotary_embedding_dim: int = 0,
    rotary_base: float = 10000.0,
    rotary_scale: float = 1.0,
    neox_rotary_style: bool = True,
) -> Tensor:
    """One decoding step: turn q and k, put k and v into the ring of the last L tokens, attend over it.

    Args:
        q: ``[B, Hq, D]`` float16, bfloat16 or float32; k, v: ``[B, Hkv, D]``; any strides, D a multiple of x.
        k_cache: ``[B, Hkv, D/x, L, x]``, x = 4 for float32, else 8; written at slot n mod L.
        v_cache: ``[B, Hkv, L, D]``; written at slot n mod L.
        length_per_sample_: int32 ``[B]``: n, the tokens cached so far and the new one's position. None: timestep for all.
        alibi_slopes_: float32 ``[Hq]``, or None.
        timestep: not used where length_per_sample_ is given.
        rotary_embedding_dim: channels to turn, 0 to D, even.
        rotary_base, rotary_scale: ``angle_i = n * rotary_scale / rotary_base^(2i / rotary_embedding_dim)``.
        neox_rotary_style: pair channel i with i + R/2; otherwise 2i with 2i + 1.

    Returns ``[B, Hq, D]``. Raises ``RuntimeError`` naming what does not fit; the caches are then as they were.
    """
    timestep = _args.integer("timestep", timestep)
    R = _args.integer("rotary_embedding_dim", rotary_embedding_dim)
    base, factor = (
        _args.number("rotary_base", rotary_base),
        _args.number("rotary_scale", rotary_scale),
    )
    _check.require(0 < base < math.inf, f"rotary_base is {base}, expected more than 0")
    neox = _args.boolean("neox_rotary_style", neox_rotary_style)
    _check_cache(q, k, v, k_cache, v_cache)
    _check_optional(q, length_per_sample_, alibi_slopes_)
    B, Hkv, L, D = v_cache.shape
    _check.require(L > 0, "v_cache has no slots")
    _check.require(R % 2 == 0 and 0 <= R <= D, f"rotary_embedding_dim is {R} of {D} channels")
    if length_per_sample_ is None:
        seen = torch.full((B,), timestep, device=q.device)
    else:
        seen = length_per_sample_.long()
    _check.require(not bool((seen < 0).any()), "a number of cached tokens is negative")
    if R:
        angles = seen.double()[:, None] * factor * _frequencies(R, base).to(q.device)
        cos, sin = angles.cos().float(), angles.sin().float()
        q, k = (_turned(x, cos, sin, neox) for x in (q, k))
    row, slot = torch.arange(B, device=q.device), seen % L
    k_cache[row, :, :, slot] = k.reshape(B, Hkv, -1, k_cache.shape[-1])
    v_cache[row, :, slot] = v
    return ops.decode_attention(q, k_cache, v_cache, seen + 1, alibi_slopes_)


@functools.lru_cache(maxsize=16)
def _frequencies(R: int, base: float) -> Tensor:
    return torch.tensor([base ** (-2 * i / R) for i in range(R // 2)], dtype=torch.float64)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, neox: bool) -> Tensor:
    """A turned copy of ``[B, H, D]``; row b of the tables belongs to row b of x."""
    copy = x.clone(memory_format=torch.contiguous_format)
    places = torch.arange(x.shape[0], device=x.device)[:, None]
    ops.rope_(copy[:, None], cos, sin, places, neox=neox)
    return copy


def _check_cache(q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    _check.tensors(q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache)
    _check.require(
        v_cache.dim() == 4,
        "v_cache must have shape (batch_size, nheads_kv, memory_max_seqlen, headdim)",
    )
    B, Hkv, L, D = v_cache.shape
    _check.require(
        q.dim() == 3 and q.shape[0] == B and q.shape[2] == D,
        "q must have shape (batch_size, nheads, headdim)",
    )
    for name, x in (("k", k), ("v", v)):
        _check.require(
            tuple(x.shape) == (B, Hkv, D),
            f"{name} must have shape (batch_size, nheads_kv, headdim)",
        )
    pack = 4 if k_cache.dtype == torch.float32 else 8
    _check.require(
        D % pack == 0 and tuple(k_cache.shape) == (B, Hkv, D // pack, L, pack),
        "k_cache must have shape (batch_size, nheads_kv, headdim / packsize, memory_max_seqlen, packsize)",
    )
    _check.require(v_cache.is_contiguous(), "v_cache must be contiguous")
    _check.require(k_cache.is_contiguous(), "k_cache must be contiguous")
    if q.dtype not in _check.FLOATS:
        raise RuntimeError(
            f"\"single_query_attention\" not implemented for type '{_check.name_of(q.dtype)}'"
        )
    for name, x in (("k", k), ("v", v), ("k_cache", k_cache), ("v_cache", v_cache)):
        _check.dtype(name, x, q.dtype)
    _check.require(
        Hkv > 0 and q.shape[1] % Hkv == 0,
        f"q has {q.shape[1]} heads, expected a multiple of v_cache's {Hkv}",
    )


def _check_optional(q: Tensor, lengths: Tensor | None, slopes: Tensor | None) -> None:
    if lengths is not None:
        _check.tensors(q=q, length_per_sample=lengths)
        _check.require(
            tuple(lengths.shape) == (q.shape[0],),
            "length_per_sample must have shape (batch_size)",
        )
        _check.dtype("length_per_sample", lengths, torch.int32)
    if slopes is not None:
        _check.tensors(q=q, alibi_slopes=slopes)
        _check.require(
            tuple(slopes.shape) == (q.shape[1],), "alibi_slopes must have shape (nheads)"
        )
        _check.dtype("alibi_slopes", slopes, torch.float32)
        _check.require(slopes.is_contiguous(), "alibi_slopes must be contiguous")
