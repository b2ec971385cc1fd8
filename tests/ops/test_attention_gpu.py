"""What attention and rope promise on a GPU beyond the cases: bad values, the same bits again, graphs."""

from __future__ import annotations

import pytest
import torch

from nybble import ops

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("T", [1, 3, 100])
def test_lengths_are_clamped(T: int, dtype: torch.dtype) -> None:
    q = torch.randn(2, T, 4, 64, device="cuda", dtype=dtype)
    k, v = torch.randn(2, 2, 90, 2, 64, device="cuda", dtype=dtype)
    wild, tame = (torch.tensor(n, device="cuda") for n in ([2**40, -5], [90, 0]))
    assert torch.equal(ops.attention(q, k, v, wild), ops.attention(q, k, v, tame))


def test_lengths_of_a_ring_are_clamped() -> None:
    q = torch.randn(1, 4, 64, device="cuda", dtype=torch.float16)
    k = torch.randn(1, 2, 8, 30, 8, device="cuda", dtype=torch.float16)
    v = torch.randn(1, 2, 30, 64, device="cuda", dtype=torch.float16)
    assert not ops.decode_attention(q, k, v, torch.tensor([-7], device="cuda")).any()


def test_a_cache_is_not_written_outside() -> None:
    D, guard = 64, 7.0
    around = torch.full((2, 3, 1, 10, D), guard, device="cuda", dtype=torch.float16)
    keys, values = around[:, 1:2]  # what lies before and after must stay
    qkv = torch.randn(1, 4, 3 * D, device="cuda", dtype=torch.float16)
    turns = torch.zeros(1, 0, device="cuda"), torch.zeros(1, 0, device="cuda")
    places = torch.zeros(1, 4, dtype=torch.int64, device="cuda")
    for length in (2, 99, -3):
        n = torch.tensor([length], device="cuda")
        ops.cached_attention_(qkv, (*turns, places), (keys, values, n))
    assert (around[:, ::2] == guard).all()


def test_a_position_outside_gives_nan() -> None:
    x = torch.randn(1, 3, 2, 16, device="cuda")
    cos, sin = torch.rand(2, 5, 4, device="cuda")
    ops.rope_(x, cos, sin, torch.tensor([[4, 5, -1]], device="cuda"))
    assert x[0, 0].isfinite().all()
    assert x[0, 1:, :, :8].isnan().all() and x[0, 1:, :, 8:].isfinite().all()


@pytest.mark.parametrize("T", [1, 20, 200])  # parts of the keys, and parts on warpgroups
def test_a_graph_gives_the_same_bits(T: int) -> None:
    H, Hk, D, S = 8, 2, 128, 5000
    qkv = torch.randn(1, T, (H + 2 * Hk) * D, device="cuda", dtype=torch.bfloat16)
    keys, values = torch.randn(2, 1, Hk, S, D, device="cuda", dtype=torch.bfloat16)
    angle = torch.rand(S, D // 2, device="cuda")
    n = torch.tensor([4000], device="cuda")
    places = n[:, None] - T + torch.arange(T, device="cuda")
    rope, cache = (angle.cos(), angle.sin(), places), (keys, values, n)
    inputs = qkv.clone()
    plain = ops.cached_attention_(qkv, rope, cache)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops.cached_attention_(qkv, rope, cache)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.cached_attention_(qkv, rope, cache)
    for _ in range(3):
        qkv.copy_(inputs)
        captured.fill_(torch.nan)
        graph.replay()
        assert torch.equal(captured, plain)
