"""The old tensor-parallel functions: several shards give what one gives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble import ops
from nybble.compat import exllamav2_ext as ext
from tests.compat.making import (
    ABSENT,
    attention_arguments,
    close,
    columns,
    half,
    handle,
    mlp_arguments,
    packed,
    rms_norm,
    tables,
)

KV, INNER, VOCABULARY, HIDDEN, Q = range(5)


def context(size: int = 4096, devices: tuple[int, int] = (0, 1)) -> int:
    """Two uneven shards, of 3 heads of keys and 6 of queries, 96 inner and 64 hidden columns, and two buffers."""
    a, b = devices
    return ext.make_tp_context(
        [(a, 0, 2), (b, 2, 3)],
        [(a, 0, 64), (b, 64, 96)],
        [(a, 0, 32), (b, 32, 64)],
        [(a, 0, 16), (b, 16, 64)],
        [(a, 0, 4), (b, 4, 6)],
        [torch.full((size,), torch.nan).half() for _ in range(2)],
        [1] * (max(devices) + 1),
    )


def buffers(handle_of_context: int) -> tuple[Tensor, ...]:
    from nybble.compat import _handles
    from nybble.compat.exl2.parallel import TpContext

    return _handles.get(handle_of_context, TpContext, name="test").pinned


def split(made: Any, *edges: int) -> list[int]:
    return [handle(columns(made, a, b)) for a, b in itertools.pairwise(edges)]


def test_broadcast() -> None:
    tp, x = context(), half(3, 64)
    targets = [torch.zeros(5, 64).half() for _ in range(2)]
    ext.tp_broadcast(tp, 1, x, HIDDEN, targets, 64, -1)
    for target in (*targets, buffers(tp)[1].view(-1, 64)):
        assert torch.equal(target[:3], x)
    assert not targets[0][3:].any()


def test_a_source_in_the_buffer_itself() -> None:
    tp = context()
    source = buffers(tp)[0][:6].view(2, 3)
    source.copy_(torch.arange(6).view(2, 3))
    targets = [torch.zeros(2, 3).half(), source]
    ext.tp_broadcast(tp, 0, source, Q, targets, 1, -1)
    assert torch.equal(targets[0], source) and source[1, 2] == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gather(dtype: torch.dtype) -> None:
    """Units of 32 columns, in a dtype of its own; the buffer has it side by side, and every target too."""
    tp, parts = context(), [torch.randn(5, 64).to(dtype), torch.randn(5, 32).to(dtype)]
    targets = [torch.zeros(5, 96, dtype=dtype) for _ in range(2)]
    ext.tp_gather(tp, 0, parts, KV, targets, Q, 32, -1)
    want = torch.cat(parts, 1)
    assert torch.equal(buffers(tp)[0].view(dtype)[: 5 * 96].view(5, 96), want)
    assert all(torch.equal(t, want) for t in targets)


@pytest.mark.parametrize("kind", [-1, -2])
def test_gather_without_targets(kind: int) -> None:
    tp, parts = context(), [half(2, 64), half(2, 32)]
    ext.tp_gather(tp, 1, parts, INNER, [], kind, 1, -1)
    assert torch.equal(buffers(tp)[1][: 2 * 96].view(2, 96), torch.cat(parts, 1))


def test_one_device_only() -> None:
    """Device 7 is the second shard: what belongs to device 3 stays as it is."""
    tp, x = context(devices=(3, 7)), half(2, 8)
    targets = [torch.zeros(2, 8).half() for _ in range(2)]
    ext.tp_broadcast(tp, 0, x, KV, targets, 1, 7)
    assert not targets[0].any() and torch.equal(targets[1], x)
    parts, whole = [half(2, 64), half(2, 32)], torch.full((2, 96), torch.nan).half()
    ext.tp_gather(tp, 1, parts, INNER, [whole, whole], -1, 1, 7)
    whole = buffers(tp)[1][: 2 * 96].view(2, 96)
    assert whole[:, :64].isnan().all() and torch.equal(whole[:, 64:], parts[1])
    made = packed(64, 48)
    c = [torch.full((2, 16), torch.nan).half(), torch.full((2, 32), torch.nan).half()]
    a = half(2, 64)
    ext.gemm_half_q_half_tp([a, a], split(made, 0, 16, 48), c, False, tp, 7)
    assert c[0].isnan().all() and not c[1].isnan().any()


def test_a_buffer_too_small() -> None:
    tp = context(size=10)
    with pytest.raises(RuntimeError, match="Temporary tensor is too small"):
        ext.tp_broadcast(tp, 0, half(11), KV, [half(11), half(11)], 1, -1)
    with pytest.raises(RuntimeError, match="Temporary tensor is too small"):
        ext.tp_gather(tp, 0, [half(1, 64), half(1, 32)], INNER, [], -1, 1, -1)


def test_all_reduce() -> None:
    """What the later residuals held does not matter."""
    terms, sums = [half(3, 8) for _ in range(3)], [half(3, 8) for _ in range(3)]
    want = sums[0].clone()
    for t in terms:
        want += t
    ext.tp_all_reduce(context(), 0, terms, sums)
    assert all(torch.equal(s, want) for s in sums)


def test_products_of_the_parts_are_the_product() -> None:
    made, a, tp = packed(64, 96, bias=True), half(5, 64), context()
    c = [torch.empty(5, 32).half(), torch.empty(5, 64).half()]
    ext.gemm_half_q_half_tp([a, a], split(made, 0, 32, 96), c, False, tp, -1)
    assert torch.equal(torch.cat(c, 1), ops.qmatmul(a, made))
    ext.tp_cross_device_barrier(tp, KV, -1, 0, 1)
    ext.free_tp_context(tp)
    with pytest.raises(RuntimeError, match="freed"):
        ext.tp_cross_device_barrier(tp, KV, -1, 0, 1)


def test_norm_of_every_shard() -> None:
    x, w, y = [half(3, 8), half(2, 8)], [half(8), half(8)], [half(3, 8), half(2, 8)]
    ext.rms_norm_tp(x, w, y, 1e-5, context())
    for one, weight, got in zip(x, w, y, strict=True):
        close(got, rms_norm(one, weight))


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("in_buffer", [False, True])
def test_mlp(gelu: bool, in_buffer: bool) -> None:
    gate, up, down, weight = packed(64, 96), packed(64, 96), packed(96, 64), half(64)
    x, tp = half(7, 64), context()
    whole = x.clone()
    if in_buffer:
        x = buffers(tp)[0][: 7 * 64].view(7, 64)
        x.copy_(whole)
    ext.tp_mlp_forward_(
        tp, x, *[[]] * 6, [weight, weight], 1e-5,
        split(gate, 0, 64, 96), split(up, 0, 64, 96), split(down, 0, 16, 64), gelu,
    )  # fmt: skip
    block = ext.make_q_mlp(
        *mlp_arguments(
            layernorm=weight,
            q_gate=handle(gate),
            q_up=handle(up),
            q_down=handle(down),
            act_gelu=gelu,
        )
    )
    if not in_buffer:
        assert torch.equal(x, whole)  # the result is in the buffer only
    ext.q_mlp_forward_(block, whole, [], ABSENT)
    close(buffers(tp)[0][: 7 * 64].view(7, 64), whole.double())


HEADS, KV_HEADS, D = 6, 3, 32


def attention_by_one(
    x: Tensor,
    weight: Tensor,
    made: list[Any],
    past: Tensor,
    keys: Tensor,
    values: Tensor,
    style: int,
) -> Tensor:
    """One shard, over the functions that are not parallel; ``keys`` and ``values`` are appended to."""
    (B, T), K = (len(past), x.shape[0] // len(past)), x.shape[1]
    block = ext.make_q_attn(
        *attention_arguments(
            layernorm=weight, num_heads=HEADS, num_kv_heads=KV_HEADS, hidden_size=K,
            q_norm=ABSENT, k_norm=ABSENT, rope_style=style, **dict(zip(
                ("q_q_proj", "q_k_proj", "q_v_proj", "q_o_proj"), map(handle, made), strict=True)),
        )
    )  # fmt: skip
    q, k, v = (torch.empty(B, T, h, D).half() for h in (HEADS, KV_HEADS, KV_HEADS))
    ext.q_attn_forward_1(block, x, B, T, 0, past, q, k, v, *tables(40, D), [], ABSENT)
    for b, start in enumerate(past.tolist()):
        keys[b, start : start + T], values[b, start : start + T] = k[b], v[b]
    seen = ops.attention(q, keys, values, past.long() + T, scale=0.2)
    out = x.clone()
    ext.q_attn_forward_2(block, out, seen, B, T, [], ABSENT)
    return out


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("style", [0, 2])
@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("K", [64, 192])
def test_attention(paged: bool, style: int, T: int, K: int) -> None:
    """Also where the heads together are not as wide as the hidden state, which the old code could not do."""
    past = torch.tensor([3, 17], dtype=torch.int32)
    made = [packed(K, 192), packed(K, 96), packed(K, 96), packed(192, K)]
    x, weight, tp = half(2 * T, K), half(K), context()
    keys, values = half(2, 32, KV_HEADS, D), half(2, 32, KV_HEADS, D)
    # Pages of 8 in any order; what a sequence does not use is named by no valid number.
    table = torch.tensor([[9, 2, -1, 99], [0, 7, 4, -5]], dtype=torch.int32)
    shards: list[list[Tensor]] = [[], []]
    for cache, parts in zip((keys, values), shards, strict=True):
        for begin, end in ((0, 2), (2, 3)):
            own = cache[:, :, begin:end].contiguous()
            if paged:
                own = torch.zeros(10, 8, end - begin, D).half()
                for b, n in ((0, 2), (1, 3)):
                    own[table[b, :n].long()] = cache[b, : 8 * n, begin:end].view(n, 8, -1, D)
            parts.append(own)
    want = attention_by_one(x, weight, made, past, keys, values, style)
    sin, cos = tables(40, D)
    q, k, v = split(made[0], 0, 128, 192), split(made[1], 0, 64, 96), split(made[2], 0, 64, 96)
    arguments = [
        tp, x, *[[]] * 7, *shards, [weight, weight], 1e-5, q, k, v, split(made[3], 0, 16, K), D, style, 2, T,
        [sin, sin], [cos, cos], [past, past], [table, table], 0.2,
    ]  # fmt: skip
    if paged:
        ext.tp_attn_forward_paged_(*arguments)
    else:
        del arguments[-2]
        ext.tp_attn_forward_(*arguments)
        assert (shards[0][1] - keys[:, :, 2:]).abs().max() <= 2**-9 * keys.abs().max()
    close(buffers(tp)[0][: x.numel()].view(x.shape), want.double())


def test_a_sequence_too_long_for_its_cache() -> None:
    made = [packed(64, 192), packed(64, 96), packed(64, 96), packed(192, 64)]
    x, tp = half(3, 64), context()
    q, k, v = split(made[0], 0, 128, 192), split(made[1], 0, 64, 96), split(made[2], 0, 64, 96)
    cache = [torch.zeros(1, 8, 2, D).half(), torch.zeros(1, 8, 1, D).half()]
    past = [torch.tensor([6], dtype=torch.int32)] * 2
    with pytest.raises(RuntimeError, match="9 tokens, but room for 8"):
        ext.tp_attn_forward_(
            tp, x, *[[]] * 7, cache, cache, [], 1e-5, q, k, v, split(made[3], 0, 16, 64), D, 0, 1, 3, [], [], past, 1.0
        )  # fmt: skip
    assert not cache[0].any()
