"""Keys and values of more than 2^31 elements: indices must not be cut to 32 bits on their way to a GPU kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nybble import ops

pytestmark = pytest.mark.gpu

Hk, D, S = 64, 128, 270_000  # 2.2e9 elements


@pytest.fixture(scope="module", autouse=True)
def room() -> None:
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of GPU memory")


def flat(seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[1, Hk, S, D]``, of which only the last 300 tokens are more than 0."""
    torch.manual_seed(seed)
    k, v = (torch.zeros(1, Hk, S, D, device="cuda", dtype=torch.float16) for _ in range(2))
    k[:, :, -300:].normal_()
    v[:, :, -300:].normal_()
    return k, v


@pytest.mark.parametrize("T", [1, 40, 100])  # split over the keys, on tensor cores, on warpgroups
def test_attention(T: int) -> None:
    k, v = flat(T)
    q = torch.randn(1, T, Hk, D, device="cuda", dtype=torch.float16)
    lengths = torch.tensor([S], device="cuda")
    o = ops.attention(q, k.transpose(1, 2), v.transpose(1, 2), lengths, window=150)
    near = (x[:, :, -300:].transpose(1, 2).float().cpu() for x in (k, v))
    expected = ops.attention(q.float().cpu(), *near, None, window=150)
    assert (o.float().cpu() - expected).abs().max() < 4e-3  # outputs below 4, rounded to float16


def test_cached_attention_writes_the_last_slot() -> None:
    k, v = flat(3)
    qkv = torch.randn(1, 1, 3 * Hk * D, device="cuda", dtype=torch.float16)
    heads = qkv.view(1, 3 * Hk, D).clone()
    none = torch.zeros(1, 0, device="cuda")
    place = torch.zeros(1, 1, dtype=torch.int64, device="cuda")
    ops.cached_attention_(
        qkv, (none, none, place), (k, v, torch.tensor([S], device="cuda")), window=8
    )
    assert torch.equal(k[:, :, -1], heads[:, Hk : 2 * Hk])
    assert torch.equal(v[:, :, -1], heads[:, 2 * Hk :])


def test_decode_attention() -> None:
    x = 8
    k = torch.zeros(1, Hk, D // x, S, x, device="cuda", dtype=torch.float16)
    v = torch.zeros(1, Hk, S, D, device="cuda", dtype=torch.float16)
    v[:, :, -1] = 27_000  # every token has the same weight
    q = torch.ones(1, Hk, D, device="cuda", dtype=torch.float16)
    o = ops.decode_attention(q, k, v, torch.tensor([S], device="cuda"))
    assert (o.float() - 0.1).abs().max() < 1e-3
