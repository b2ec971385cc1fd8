"""What the table of cases cannot say of ``paged_attention``: whose values count, which calls are refused, what a GPU keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble import ops

STORAGES = ("plain", "fp8", "q8", "q4")


def cache(kind: str, P: int, page: int, Hk: int, D: int, device: str) -> dict[str, Tensor]:
    """Random keys and values of one kind, as arguments."""
    x = torch.randn(2, P, page, Hk, D, dtype=torch.float16)
    if kind == "plain":
        return {"keys": x[0].to(device), "values": x[1].to(device)}
    if kind == "fp8":
        codes = ops.fp8_encode_(torch.empty_like(x, dtype=torch.uint8), x).to(device)
        return {"keys": codes[0], "values": codes[1]}
    bits, runs = int(kind[1:]), torch.tensor([[0, P * page]])
    made: dict[str, Tensor] = {}
    for name, one in zip(("key", "value"), x, strict=True):
        codes = torch.empty(P, page, Hk, D * bits // 8, dtype=torch.uint8)
        scales = torch.empty(P, page, Hk, D // 32, dtype=torch.float16)
        ops.kv_quantize_(codes, scales, one, runs, bits=bits)
        made |= {f"{name}s": codes.to(device), f"{name}_scales": scales.to(device)}
    return made


def test_a_page_outside_is_refused_only_where_there_are_tokens() -> None:
    pages, q = torch.randn(3, 4, 1, 8), torch.randn(1, 1, 2, 8)
    table = torch.tensor([[1, 5]], dtype=torch.int32)
    ops.paged_attention(q, pages, pages, table, torch.tensor([4]))
    with pytest.raises(RuntimeError, match=r"block_table\[0, 1\] is 5, expected 0 to 2"):
        ops.paged_attention(q, pages, pages, table, torch.tensor([5]))
    with pytest.raises(RuntimeError, match=r"lengths\[0\] is 9"):
        ops.paged_attention(q, pages, pages, table, torch.tensor([9]))


@pytest.mark.parametrize("kind", STORAGES)
def test_keys_and_values_may_differ(kind: str) -> None:
    """Each storage for keys with each for values: as if both had been made numbers first."""
    table, lengths = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([50])
    q = torch.randn(1, 1, 4, 64).half()
    first = cache(kind, 2, 32, 2, 64, "cpu")
    for other in STORAGES:
        second = cache(other, 2, 32, 2, 64, "cpu")
        mixed = {k: v for k, v in first.items() if k.startswith("key")}
        mixed |= {k: v for k, v in second.items() if k.startswith("value")}
        got = ops.paged_attention(q, block_table=table, lengths=lengths, **mixed)
        k, v = numbers(mixed, "key"), numbers(mixed, "value")
        want = ops.paged_attention(q, k, v, table, lengths)
        torch.testing.assert_close(got, want, atol=4e-3, rtol=4e-3)


def numbers(held: dict[str, Tensor], name: str) -> Tensor:
    codes, scales = held[f"{name}s"], held.get(f"{name}_scales")
    if codes.dtype != torch.uint8:
        return codes
    P, page, Hk, _ = codes.shape
    x = torch.empty(P, page, Hk, 64, dtype=torch.float16)
    if scales is None:
        return ops.fp8_decode_(x, codes)
    runs = torch.tensor([[0, P * page]])
    return ops.kv_dequantize_(x, codes, scales, runs, bits=8 * codes.shape[3] // 64)


def problems() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in STORAGES:
        for Hk, D, page in ((8, 128, 256), (2, 64, 16), (2, 96, 16)):
            torch.manual_seed(3)
            held = cache(kind, 64, page, Hk, D, "cuda")
            lengths = torch.tensor([16 * page, 5 * page + 3, 0, 1, 30 * page - 1], device="cuda")
            counts = (-(-lengths // page)).tolist()
            table = torch.full((5, max(counts)), -1, dtype=torch.int32, device="cuda")
            order = torch.randperm(64).tolist()
            for b, count in enumerate(counts):
                table[b, :count] = torch.tensor([order.pop() for _ in range(count)])
            q = torch.randn(5, 1, 4 * Hk, D, device="cuda").half()
            yield f"{kind}-{Hk}-{D}", {"q": q, "block_table": table, "lengths": lengths, **held}


@pytest.mark.gpu
def test_the_same_bits_again() -> None:
    for name, problem in problems():
        assert torch.equal(ops.paged_attention(**problem), ops.paged_attention(**problem)), name


@pytest.mark.gpu
def test_alone_or_among_others() -> None:
    """Other ranges, and other kernels add up the same sums; what scratch memory held before is not heard of."""
    for name, problem in problems():
        together = ops.paged_attention(**problem)
        for b in range(5):
            alone = problem | {k: problem[k][b : b + 1] for k in ("q", "block_table", "lengths")}
            torch.full((1 << 22,), torch.nan, device="cuda")
            got = ops.paged_attention(**alone)[0]
            torch.testing.assert_close(got, together[b], atol=2e-3, rtol=2e-3, msg=f"{name} {b}")


@pytest.mark.gpu
def test_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_BATCH_INVARIANT", "1")
    for name, problem in problems():
        together = ops.paged_attention(**problem)
        for b in range(5):
            alone = {k: problem[k][b : b + 1] for k in ("q", "block_table", "lengths")}
            assert torch.equal(ops.paged_attention(**{**problem, **alone})[0], together[b]), name


@pytest.mark.gpu
def test_lengths_change_between_replays_of_a_graph() -> None:
    for name, problem in problems():
        ops.paged_attention(**problem)
        torch.cuda.synchronize()
        graph, lengths = torch.cuda.CUDAGraph(), problem["lengths"].clone()
        with torch.cuda.graph(graph):
            got = ops.paged_attention(**problem)
        for shorter in (0, 7, 300):
            problem["lengths"].copy_((lengths - shorter).clamp(min=0))
            got.fill_(torch.nan)
            graph.replay()
            assert torch.equal(got, ops.paged_attention(**problem)), name


@pytest.mark.gpu
def test_lengths_and_pages_written_just_before() -> None:
    """The kernel begins before the last one has ended, with lengths and pages as they are by then: it must look again."""
    for name, problem in problems():
        now = {k: problem[k].clone() for k in ("lengths", "block_table")}
        ops.paged_attention(**{**problem, **now})
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(3):
                for k, there in now.items():
                    there.copy_(problem[k])
                got = ops.paged_attention(**{**problem, **now})
                now["lengths"].zero_()
                now["block_table"].fill_(1 << 30)
        for shift in (0, 1, 200):
            problem["lengths"].sub_(shift).clamp_(min=0)
            problem["block_table"].copy_(problem["block_table"].roll(shift, 1))
            problem["block_table"].clamp_(min=0)
            got.fill_(torch.nan)
            graph.replay()
            assert torch.equal(got, ops.paged_attention(**problem)), name


@pytest.mark.gpu
def test_a_page_that_does_not_exist_is_nan_for_its_sequence_alone() -> None:
    for name, problem in problems():
        good = ops.paged_attention(**problem)
        for page in (-1, 64, 1 << 30):
            problem["block_table"][1, 2] = page
            bad = ops.paged_attention(**problem)
            assert bad[1].isnan().all(), name
            assert torch.equal(bad[[0, 2, 3, 4]], good[[0, 2, 3, 4]]), name


@pytest.mark.gpu
def test_lengths_are_clamped() -> None:
    for name, problem in problems():
        problem["block_table"].clamp_(min=0)
        limit = problem["block_table"].shape[1] * problem["keys"].shape[1]
        some = torch.tensor([limit, 0, 5, 0, limit], device="cuda")
        want = ops.paged_attention(**{**problem, "lengths": some})
        wild = torch.tensor([limit + 9, -4, 5, -(1 << 62), 1 << 62], device="cuda")
        assert torch.equal(ops.paged_attention(**{**problem, "lengths": wild}), want), name
