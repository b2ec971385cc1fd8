"""The quantized parts of attention blocks behind handles: ``make_q_attn``, what runs and what frees it.

A tensor on the meta device stands for an absent one. What differs from the original is in ``docs/compat/attention.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nybble.compat import _args, _handles
from nybble.compat.exl2 import _layers
from nybble.compat.exl2._layers import Norm, Projection
from nybble.compat.exl2.rope import rope_


@dataclass(frozen=True, eq=False)
class QAttention:
    """What an attention handle stands for."""

    norm: Norm | None
    q: Projection | None  # None: made without; q_attn_forward_1 needs all three
    k: Projection | None
    v: Projection | None
    o: Projection
    q_norm: Norm | None  # weights [heads, D]
    k_norm: Norm | None
    post_norm: Norm | None
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int  # 0: none; 1: neighbouring channels are a pair; 2: the halves' channels are
    sincos_size: int
    residual: bool
    fp32: bool  # the hidden states are float32


def make_q_attn(
    layernorm: Tensor,
    layernorm_bias: Tensor,
    layernorm_is_rms: bool,
    headnorm_is_rms: bool,
    norm_epsilon: float,
    q_q_proj: int,
    q_k_proj: int,
    q_v_proj: int,
    q_o_proj: int,
    temp_state: Tensor,
    temp_dq: Tensor,
    max_rows: int,
    hidden_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_seq_len: int,
    has_residual: bool,
    rope_style: int,
    sincos_size: int,
    q_norm: Tensor,
    k_norm: Tensor,
    post_layernorm: Tensor,
    post_layernorm_bias: Tensor,
    residual_fp32: bool,
    use_graphs: bool,
) -> int:
    """A handle for what stands before and after attention: norm, projections, head norms, rotation; output projection, norm.

    Args:
        layernorm, layernorm_bias: float16 ``[hidden_size]`` or absent; the bias counts for layer norm only.
        layernorm_is_rms: of the first norm and of the post-norm.
        headnorm_is_rms: of the norms of query and key heads.
        norm_epsilon: of all norms.
        q_q_proj, q_k_proj, q_v_proj, q_o_proj: matrices; 0 for one of the first three makes a block that has no first half.
        temp_state, temp_dq, max_rows, max_seq_len, use_graphs: not needed.
        hidden_size, num_heads, num_kv_heads, head_dim: sizes, which the matrices must have.
        has_residual: without a post-norm, whether the result is added to ``x`` or replaces it.
        rope_style: 0 none, 1 pairs of neighbouring channels, 2 pairs half the rotary width apart.
        sincos_size: rotary width, the row length of the tables.
        q_norm, k_norm: float16 ``[heads, head_dim]`` or absent.
        post_layernorm, post_layernorm_bias: float16 ``[hidden_size]`` or absent.
        residual_fp32: ``x`` is float32.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    for name, value in (("temp_state", temp_state), ("temp_dq", temp_dq)):
        _args.optional(name, value)
    for name, size in (("max_rows", max_rows), ("max_seq_len", max_seq_len)):
        _args.integer(name, size)
    _args.boolean("use_graphs", use_graphs)
    hidden, D = _size("hidden_size", hidden_size), _size("head_dim", head_dim)
    H, Hk = _size("num_heads", num_heads), _size("num_kv_heads", num_kv_heads)
    rms = _args.boolean("layernorm_is_rms", layernorm_is_rms)
    head_rms = _args.boolean("headnorm_is_rms", headnorm_is_rms)
    eps = _args.number("norm_epsilon", norm_epsilon)
    first = _layers.norm("layernorm", layernorm, layernorm_bias, rms=rms, eps=eps)
    last = _layers.norm("post_layernorm", post_layernorm, post_layernorm_bias, rms=rms, eps=eps)
    for name, norm in (("layernorm", first), ("post_layernorm", last)):
        if norm is not None and hidden != norm.D:
            raise RuntimeError(f"{name} is wrong shape")
    style, width = (
        _args.integer("rope_style", rope_style),
        _args.integer("sincos_size", sincos_size),
    )
    if style not in (0, 1, 2):
        raise RuntimeError(f"rope_style is {style}, expected 0 (none), 1 (GPT-J) or 2 (NeoX)")
    if style != 0 and not (0 < width <= D and width % 2 == 0):
        raise RuntimeError(f"sincos_size is {width}, expected an even number up to head_dim = {D}")
    block = QAttention(
        norm=first,
        q=_optional_projection("q_proj", q_q_proj, hidden, H * D),
        k=_optional_projection("k_proj", q_k_proj, hidden, Hk * D),
        v=_optional_projection("v_proj", q_v_proj, hidden, Hk * D),
        o=_layers.projection("o_proj", q_o_proj, K=H * D, N=hidden),
        q_norm=_head_norm("q_norm", q_norm, (H, D), rms=head_rms, eps=eps),
        k_norm=_head_norm("k_norm", k_norm, (Hk, D), rms=head_rms, eps=eps),
        post_norm=last,
        hidden=hidden,
        heads=H,
        kv_heads=Hk,
        head_dim=D,
        rotary=style,
        sincos_size=width,
        residual=_args.boolean("has_residual", has_residual),
        fp32=_args.boolean("residual_fp32", residual_fp32),
    )
    return _handles.new(block)


def free_q_attn(handle: int) -> None:
    """Forget an attention block, not its matrices; 0 is none. Raises ``RuntimeError`` for a handle that is none's."""
    _handles.free(handle, QAttention, name="free_q_attn")


def q_attn_forward_1(
    q_attn: int,
    x: Tensor,
    batch_size: int,
    q_len: int,
    past_len: int,
    past_lens: Tensor,
    q_temp: Tensor,
    k_temp: Tensor,
    v_temp: Tensor,
    sin: Tensor,
    cos: Tensor,
    loras: list[int],
    loras_temp: Tensor,
) -> None:
    """Queries, keys and values of ``x``: norm, projections with adapters, head norms, rotation.

    Args:
        q_attn: from :func:`make_q_attn`.
        x: ``[batch_size * q_len, hidden]`` in any shape, float16, or float32 if the block was made so.
        past_len, past_lens: the first token of sequence ``b`` stands at ``past_len + past_lens[b]``, at ``past_len`` if
            ``past_lens`` is absent, at ``past_lens[b]`` if ``past_len`` is -1; never below 0. past_lens is int32.
        q_temp, k_temp, v_temp: float16, written from their start: ``[batch_size, q_len, heads, head_dim]``.
        sin, cos: float16 tables, a row of ``sincos_size`` a position; not looked at without rotation.
        loras: ids of adapters in the order of their use; those that a layer does not have are passed over.
        loras_temp: not needed.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    block = _handles.get(q_attn, QAttention, name="q_attn_forward_1")
    if block.q is None or block.k is None or block.v is None:
        raise RuntimeError("q_attn_forward_1: the block was made without q_proj, k_proj or v_proj")
    B, T = _size("batch_size", batch_size), _size("q_len", q_len)
    rows = _rows("x", _layers.hidden("x", x, fp32=block.fp32), B * T, block.hidden)
    ids = _layers.adapter_ids(loras, loras_temp)
    lens = _lens(past_lens, B)
    if block.rotary != 0 and _args.tensor("sin", sin).shape[-1:] != (block.sincos_size,):
        raise RuntimeError(f"sin has shape {list(sin.shape)}, expected [..., {block.sincos_size}]")
    queries = _target("q_temp", q_temp, (B, T, block.heads, block.head_dim))
    keys = _target("k_temp", k_temp, (B, T, block.kv_heads, block.head_dim))
    values = _target("v_temp", v_temp, (B, T, block.kv_heads, block.head_dim))
    s = _layers.normed(block.norm, rows)
    for target, layer, norm in (
        (queries, block.q, block.q_norm),
        (keys, block.k, block.k_norm),
        (values, block.v, None),
    ):
        heads = layer(s, ids).view(target.shape)
        target.copy_(heads if norm is None else norm(heads))
    if block.rotary == 0:
        return
    for target in (queries, keys):
        _, _, H, D = target.shape
        rope_(target, sin, cos, past_len, H, D, lens, block.rotary == 2)


def q_attn_forward_2(
    q_attn: int,
    x: Tensor,
    attn_output: Tensor,
    batch_size: int,
    q_len: int,
    loras: list[int],
    loras_temp: Tensor,
) -> None:
    """``x += post_norm(attn_output @ Wo)``; without a post-norm ``x += ...``, or ``x = ...`` without a residual. In place.

    Args:
        q_attn: from :func:`make_q_attn`.
        x: ``[batch_size * q_len, hidden]`` in any shape, float16, or float32 if the block was made so; changed in place.
        attn_output: float16 ``[batch_size * q_len, heads * head_dim]`` in any shape.
        loras, loras_temp: as in :func:`q_attn_forward_1`.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    block = _handles.get(q_attn, QAttention, name="q_attn_forward_2")
    M = _size("batch_size", batch_size) * _size("q_len", q_len)
    rows = _rows("x", _layers.hidden("x", x, fp32=block.fp32), M, block.hidden)
    seen = _layers.hidden("attn_output", attn_output, fp32=False)
    seen = _rows("attn_output", seen, M, block.heads * block.head_dim)
    y = block.o(seen.float(), _layers.adapter_ids(loras, loras_temp))
    _layers.leave_(rows, y, block.post_norm, residual=block.residual)


def q_attn_set_loras(
    q_attn: int,
    q_a: dict[int, Tensor],
    q_b: dict[int, Tensor],
    k_a: dict[int, Tensor],
    k_b: dict[int, Tensor],
    v_a: dict[int, Tensor],
    v_b: dict[int, Tensor],
    o_a: dict[int, Tensor],
    o_b: dict[int, Tensor],
) -> int:
    """Replace all adapters of an attention block and return the largest rank, 0 for none.

    Args:
        q_attn: from :func:`make_q_attn`.
        q_a, q_b and so on: adapter id to float16 ``[K, r]`` and ``[r, N]``, scaled already; copied.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for what is no dict of tensors.
    """
    block = _handles.get(q_attn, QAttention, name="q_attn_set_loras")
    return _layers.set_loras(
        ("q_proj", block.q, q_a, q_b),
        ("k_proj", block.k, k_a, k_b),
        ("v_proj", block.v, v_a, v_b),
        ("o_proj", block.o, o_a, o_b),
    )


def _optional_projection(name: str, handle: Any, K: int, N: int) -> Projection | None:
    return None if _args.integer(name, handle) == 0 else _layers.projection(name, handle, K=K, N=N)


def _head_norm(
    name: str, weight: Any, shape: tuple[int, int], *, rms: bool, eps: float
) -> Norm | None:
    if _args.optional(name, weight) is None:
        return None
    given = _args.contiguous(name, _args.dtype(name, weight, "kHalf"))
    if given.shape != shape:
        raise RuntimeError(f"{name} has shape {list(given.shape)}, expected {list(shape)}")
    return Norm(given, None, rms, eps)


def _lens(past_lens: Any, B: int) -> Tensor:
    """``past_lens`` without what lies beyond the batch; absent stays absent."""
    given = _args.tensor("past_lens", past_lens)
    if given.is_meta:
        return given
    _args.contiguous("past_lens", _args.dtype("past_lens", given, "kInt"))
    if given.numel() < B:
        raise RuntimeError(f"past_lens has {given.numel()} elements, expected {B} or more")
    return given.view(-1)[:B]


def _size(name: str, value: Any) -> int:
    size = _args.integer(name, value)
    if size < 0:
        raise RuntimeError(f"{name} is {size}, expected 0 or more")
    return size


def _rows(name: str, x: Tensor, M: int, K: int) -> Tensor:
    """``x`` as ``[M, K]`` over the same memory."""
    if x.numel() != M * K:
        raise RuntimeError(
            f"{name} has {x.numel()} elements, expected batch_size * q_len * {K} = {M * K}"
        )
    return x.view(M, K)


def _target(name: str, value: Any, shape: tuple[int, int, int, int]) -> Tensor:
    """The start of an output, which may have more elements, in this shape."""
    given = _args.contiguous(name, _args.dtype(name, value, "kHalf"))
    count = math.prod(shape)
    if given.numel() < count:
        raise RuntimeError(f"{name} has {given.numel()} elements, expected {count} or more")
    return given.view(-1)[:count].view(shape)
