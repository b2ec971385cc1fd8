"""Attention blocks over several shards: ``tp_attn_forward_``, ``tp_attn_forward_paged_``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args, _handles
from nybble.compat.exl2 import _layers
from nybble.compat.exl2._layers import Norm, Projection, normed
from nybble.compat.exl2.parallel import QUERIES, TpContext, listed, projections
from nybble.compat.exl2.parallel_blocks import (
    check_inputs,
    check_scratch,
    gather_and_leave_,
    last_of,
    norms_of,
)
from nybble.compat.exl2.rope import rope_


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of one shard, and where this call's tokens go."""

    k: Tensor  # float16 [pages, P, Hk, D]; without pages [B, S, Hk, D], a page a sequence
    v: Tensor
    pages: Tensor | None  # int64 [B, n], the pages of each sequence
    places: Tensor  # int64 [B, T], positions of the new tokens

    def append_(self, k: Tensor, v: Tensor) -> None:
        """Store the new tokens' ``[B, T, Hk, D]``."""
        P = self.k.shape[1]
        if self.pages is None:
            page = torch.arange(self.places.shape[0], device=self.places.device)[:, None]
        else:
            page = self.pages.gather(1, self.places // P)
        slot = self.places % P
        self.k[page, slot] = k
        self.v[page, slot] = v

    def attend(self, q: Tensor, scale: float) -> Tensor:
        """Causal attention of the new tokens over all, ``[B, T, H, D]``."""
        B = self.places.shape[0]
        if self.pages is None:
            k, v = self.k[:B], self.v[:B]
        else:
            k, v = (cache[self.pages].flatten(1, 2) for cache in (self.k, self.v))
        return ops.attention(q, k, v, self.places[:, -1] + 1, scale=scale)


@dataclass(frozen=True, eq=False)
class AttentionShard:
    """One shard's part of an attention block."""

    norm: Norm | None
    q: Projection
    k: Projection
    v: Projection
    past: Tensor  # int32 [B]
    tables: tuple[Tensor, Tensor] | None  # sin and cos; None: no rotation
    cache: Cache

    def heads(self, x: Tensor, D: int, *, neox: bool, scale: float) -> Tensor:
        """This shard's heads for the rows ``x``: float16 ``[M, H * D]``. Appends to the cache."""
        s = normed(self.norm, x)
        shape = (*self.cache.places.shape, -1, D)
        q, k, v = (layer(s).half().view(shape) for layer in (self.q, self.k, self.v))
        if self.tables is not None:
            for heads in (q, k):
                rope_(heads, *self.tables, 0, heads.shape[2], D, self.past, neox)
        self.cache.append_(k, v)
        return self.cache.attend(q, scale).flatten(2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Given:
    """The arguments of an attention call, not checked yet, in the old interface's words."""

    tp_context: Any
    hidden_states: Any
    temps: tuple[Any, ...]
    k_cache: Any
    v_cache: Any
    block_index: Any  # None without pages
    pre_layernorm: Any
    norm_epsilon: Any
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any
    head_dim: Any
    rope_style: Any
    batch_size: Any
    q_len: Any
    sin: Any
    cos: Any
    past_lens: Any
    scaling: Any


def tp_attn_forward_paged_(
    tp_context: int,
    hidden_states: Tensor,
    temp_bc0: list[Tensor],
    temp_bc1: list[Tensor],
    temp_bc2: list[Tensor],
    temp_q: list[Tensor],
    temp_k: list[Tensor],
    temp_v: list[Tensor],
    temp_o: list[Tensor],
    k_cache: list[Tensor],
    v_cache: list[Tensor],
    pre_layernorm: list[Tensor],
    norm_epsilon: float,
    q_proj: list[int],
    k_proj: list[int],
    v_proj: list[int],
    o_proj: list[int],
    head_dim: int,
    rope_style: int,
    batch_size: int,
    q_len: int,
    sin: list[Tensor],
    cos: list[Tensor],
    past_lens: list[Tensor],
    block_index: list[Tensor],
    scaling: float,
) -> None:
    """An attention block over shards with a paged cache: ``buffer 0 = x + attention(norm(x)) @ Wo``.

    Args:
        tp_context: from ``make_tp_context``.
        hidden_states: float16 ``[batch_size * q_len, hidden]``, usually the start of buffer 0.
        temp_bc0, temp_bc1, temp_bc2, temp_q, temp_k, temp_v, temp_o: lists of tensors, not needed.
        k_cache, v_cache: one a shard, float16 ``[pages, page size, kv heads, head_dim]``; the new tokens are appended.
        pre_layernorm: one a shard, float16 ``[hidden]``, RMS; or an empty list.
        q_proj, k_proj, v_proj, o_proj: matrices, one a shard: some columns of each.
        rope_style: 0 none, 1 pairs of neighbouring channels, 2 pairs half the tables' width apart.
        sin, cos: one a device number, float16; not looked at without rotation.
        past_lens: one a shard, int32 ``[batch_size]``: tokens in the cache before this call.
        block_index: one a shard, int32 ``[batch_size, n]``: the pages of each sequence.
        scaling: of the scores.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    _attention(
        Given(
            tp_context=tp_context,
            hidden_states=hidden_states,
            temps=(temp_bc0, temp_bc1, temp_bc2, temp_q, temp_k, temp_v, temp_o),
            k_cache=k_cache,
            v_cache=v_cache,
            block_index=_layers.sequence("block_index", block_index),
            pre_layernorm=pre_layernorm,
            norm_epsilon=norm_epsilon,
            q_proj=q_proj,
            k_proj=k_proj,
            v_proj=v_proj,
            o_proj=o_proj,
            head_dim=head_dim,
            rope_style=rope_style,
            batch_size=batch_size,
            q_len=q_len,
            sin=sin,
            cos=cos,
            past_lens=past_lens,
            scaling=scaling,
        )
    )


def tp_attn_forward_(
    tp_context: int,
    hidden_states: Tensor,
    temp_bc0: list[Tensor],
    temp_bc1: list[Tensor],
    temp_bc2: list[Tensor],
    temp_q: list[Tensor],
    temp_k: list[Tensor],
    temp_v: list[Tensor],
    temp_o: list[Tensor],
    k_cache: list[Tensor],
    v_cache: list[Tensor],
    pre_layernorm: list[Tensor],
    norm_epsilon: float,
    q_proj: list[int],
    k_proj: list[int],
    v_proj: list[int],
    o_proj: list[int],
    head_dim: int,
    rope_style: int,
    batch_size: int,
    q_len: int,
    sin: list[Tensor],
    cos: list[Tensor],
    past_len_tp: list[Tensor],
    scaling: float,
) -> None:
    """:func:`tp_attn_forward_paged_` with k_cache and v_cache ``[batch or more, tokens, kv heads, head_dim]``, no pages.

    Args: as there, but for ``block_index``; ``past_len_tp`` is what ``past_lens`` is there.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    _attention(
        Given(
            tp_context=tp_context,
            hidden_states=hidden_states,
            temps=(temp_bc0, temp_bc1, temp_bc2, temp_q, temp_k, temp_v, temp_o),
            k_cache=k_cache,
            v_cache=v_cache,
            block_index=None,
            pre_layernorm=pre_layernorm,
            norm_epsilon=norm_epsilon,
            q_proj=q_proj,
            k_proj=k_proj,
            v_proj=v_proj,
            o_proj=o_proj,
            head_dim=head_dim,
            rope_style=rope_style,
            batch_size=batch_size,
            q_len=q_len,
            sin=sin,
            cos=cos,
            past_lens=past_len_tp,
            scaling=scaling,
        )
    )


def _attention(given: Given) -> None:
    """Check everything, then run every shard and gather."""
    context = _handles.get(given.tp_context, TpContext, name="tp_attn_forward")
    check_scratch(*given.temps)
    B, T, D = (
        _count(name, value)
        for name, value in (
            ("batch_size", given.batch_size),
            ("q_len", given.q_len),
            ("head_dim", given.head_dim),
        )
    )
    style = _args.integer("rope_style", given.rope_style)
    if style not in (0, 1, 2):
        raise RuntimeError(f"rope_style is {style}, expected 0 (none), 1 (GPT-J) or 2 (NeoX)")
    scale = _args.number("scaling", given.scaling)
    x = _layers.hidden("hidden_states", given.hidden_states, fp32=False)
    if x.dim() != 2 or x.shape[0] != B * T:
        raise RuntimeError(f"hidden_states has shape {list(x.shape)}, expected [{B * T}, hidden]")
    last = last_of(
        context, x, projections("q_proj", given.q_proj), projections("o_proj", given.o_proj)
    )
    shards = _attention_shards(context, given, x, (B, T, D), rotates=style != 0)
    made = [
        shard.heads(x.to(shard.q.matrix.device), D, neox=style == 2, scale=scale)
        for shard in shards
    ]
    gather_and_leave_(context, x, made, last)


def _attention_shards(
    context: TpContext, given: Given, x: Tensor, sizes: tuple[int, int, int], *, rotates: bool
) -> list[AttentionShard]:
    B, T, D = sizes
    layers = [
        projections(name, handles)
        for name, handles in (
            ("q_proj", given.q_proj),
            ("k_proj", given.k_proj),
            ("v_proj", given.v_proj),
        )
    ]
    parts = context.splits[QUERIES]
    norms = norms_of(given.pre_layernorm, given.norm_epsilon, len(parts), x.shape[1])
    lens, keys, values = (
        listed(name, value, parts)
        for name, value in (
            ("past_lens", given.past_lens),
            ("k_cache", given.k_cache),
            ("v_cache", given.v_cache),
        )
    )
    blocks: Sequence[Tensor | None] = [None] * len(parts)
    if given.block_index is not None:
        blocks = listed("block_index", given.block_index, parts)
    for some in layers:
        if len(some) != len(parts):
            raise RuntimeError(
                f"there are {len(some)} matrices, expected {len(parts)}, one a shard"
            )
        check_inputs(x, some)
    shards = []
    for i, (part, q, k, v) in enumerate(zip(parts, *layers, strict=True)):
        heads = k.matrix.N // D
        if (
            heads * D != k.matrix.N
            or heads * D != v.matrix.N
            or heads == 0
            or q.matrix.N % (heads * D)
        ):
            raise RuntimeError(
                f"shard {i} has {q.matrix.N}, {k.matrix.N} and {v.matrix.N} columns of queries, keys and values, "
                f"expected whole heads of {D}, as many of keys as of values, a multiple of it of queries"
            )
        past = _past(lens[i], B)
        cache = _cache(keys[i], values[i], blocks[i], past, (T, heads, D))
        tables = _tables(given, part.device, D) if rotates else None
        shards.append(AttentionShard(norms[i], q, k, v, past, tables, cache))
    return shards


def _count(name: str, value: Any) -> int:
    number = _args.integer(name, value)
    if number < 1:
        raise RuntimeError(f"{name} is {number}, expected 1 or more")
    return number


def _past(lens: Tensor, B: int) -> Tensor:
    given = _args.contiguous("past_lens", _args.dtype("past_lens", lens, "kInt"))
    if given.numel() != B or int(given.min()) < 0:
        raise RuntimeError(f"past_lens is {given.tolist()}, expected {B} numbers, 0 or more")
    return given.view(-1)


def _tables(given: Given, device: int, D: int) -> tuple[Tensor, Tensor]:
    """sin and cos of one device number; ``rope_`` checks what is in them."""
    found = []
    for name, value in (("sin", given.sin), ("cos", given.cos)):
        tables = _layers.sequence(name, value)
        if device >= len(tables):
            raise RuntimeError(
                f"{name} has {len(tables)} tables, but a shard is on device {device}"
            )
        found.append(_args.dtype(f"{name}[{device}]", tables[device], "kHalf"))
    return found[0], found[1]


def _cache(
    k: Tensor, v: Tensor, blocks: Tensor | None, past: Tensor, sizes: tuple[int, int, int]
) -> Cache:
    """A shard's cache, checked so that no index is out of range."""
    T, heads, D = sizes
    k, v = (
        _args.contiguous(name, _args.dtype(name, value, "kHalf"))
        for name, value in (("k_cache", k), ("v_cache", v))
    )
    if k.dim() != 4 or k.shape[2:] != (heads, D) or v.shape != k.shape:
        raise RuntimeError(
            f"k_cache and v_cache have shapes {list(k.shape)} and {list(v.shape)}, "
            f"expected the same [pages or batch, tokens, {heads}, {D}]"
        )
    places = past.long()[:, None] + torch.arange(T, device=past.device)
    B, P, end = past.numel(), k.shape[1], int(places.max()) + 1
    pages = None
    if blocks is not None:
        table = _args.dtype("block_index", blocks, "kInt")
        if table.dim() != 2 or table.shape[0] != B:
            raise RuntimeError(f"block_index has shape {list(table.shape)}, expected [{B}, n]")
        room = table.shape[1] * P
    else:
        room = P if k.shape[0] >= B else 0
    if end > room:
        raise RuntimeError(f"a sequence has {end} tokens, but room for {room} in the cache")
    if blocks is not None:
        needed = torch.arange(-(-end // P), device=past.device)
        # What stands beyond a sequence's own pages may be anything; page 0 stands in, and is not looked at.
        pages = table[:, : len(needed)].long() * (needed * P < places[:, -1:] + 1)
        if int(pages.min()) < 0 or int(pages.max()) >= k.shape[0]:
            raise RuntimeError(f"block_index names a page beyond the cache's {k.shape[0]}")
    return Cache(k, v, pages, places)
