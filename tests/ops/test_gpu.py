"""What the GPU's kernels promise beside right numbers: the same bits each time, from a graph too, and rows by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.ops import _native, _schema
from tests.cases import Case
from tests.ops.test_cases import CASES, check, first, on_gpu

pytestmark = pytest.mark.gpu


def outcome(case: Case, args: list[Any], returned: Any) -> list[Tensor]:
    """Everything that a call has written or returned."""
    results = returned if isinstance(returned, (tuple, list)) else [returned]
    written = [args[i] for i in case.written if case.op.endswith("_")]
    return [t.clone() for t in (*written, *results) if t is not None]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether all bytes are equal, NaN's too."""
    return torch.equal(as_bytes(a), as_bytes(b))


def as_bytes(t: Tensor) -> Tensor:
    """A contiguous tensor's memory; of any other a copy's."""
    return t.contiguous().view(-1).view(torch.uint8)


def test_every_op_is_native_on_the_gpu() -> None:
    """Without this the reference would pass every other test here."""
    assert [op for op in _schema.SCHEMAS if "CUDA" not in _native.native_devices(op)] == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits_each_time(case: Case) -> None:
    runs = []
    for _ in range(3):
        args = on_gpu(case)
        runs.append(outcome(case, args, getattr(torch.ops.nybble, case.op)(*args)))
    for again in runs[1:]:
        assert all(same_bits(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("op", sorted(_schema.SCHEMAS))
def test_a_graph_replays_it(op: str) -> None:
    """Captured without a wait or an allocation outside the graph's pool; outputs are spoilt before the replay."""
    case = next(c for c in CASES if c.op == op and first(c).numel() > 0)
    call = getattr(torch.ops.nybble, op)
    call(*on_gpu(case))  # what happens once, such as raising a shared-memory limit, happens here
    args, clean = on_gpu(case), on_gpu(case)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = call(*args)
    for t in returned if isinstance(returned, (tuple, list)) else [returned]:
        if t is not None:
            as_bytes(t).fill_(0xFF)
    for i in case.written if op.endswith("_") else ():
        args[i].copy_(clean[i])
    graph.replay()
    torch.cuda.synchronize()
    check(case, args, returned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 3])
def test_a_row_may_be_independent_of_its_batch(bits: int, dtype: torch.dtype) -> None:
    from nybble import ops
    from tests.cases.qmatmul import random_packed

    m = random_packed(1024, 320, [bits], group=128, zeros=bits == 4).to("cuda")
    x = torch.randn(300, 1024, device="cuda").to(dtype)
    many = ops.qmatmul(x, m, invariant=True)
    for rows in (slice(0, 1), slice(7, 9), slice(100, 117), slice(236, 300)):
        assert same_bits(ops.qmatmul(x[rows], m, invariant=True), many[rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("K", [128, 1024, 1536, 4096, 8192, 12288, 17408])
def test_a_norm_before_a_product_has_its_own_bits(K: int, dtype: torch.dtype) -> None:
    from nybble import ops
    from tests.cases.qmatmul import random_packed

    m = random_packed(K, 64, [4], group=128).to("cuda")
    x, weight = torch.randn(3, K, device="cuda").to(dtype), torch.rand(K, device="cuda").to(dtype)
    apart = ops.qmatmul(ops.rms_norm(x, weight, 1e-5), m)
    assert same_bits(ops.qmatmul(x, m, norm=(weight, 1e-5)), apart)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("M", "N"), [(100, 23040), (200, 11520)])
def test_blocks_wait_for_each_other(M: int, N: int, dtype: torch.dtype) -> None:
    """On an H200 some blocks add what others leave in scratch: in each replay of a graph anew, whatever was there."""
    from nybble import ops
    from tests.cases.qmatmul import random_packed

    m = random_packed(4096, N, [4], group=128).to("cuda")
    x = torch.randn(M, 4096, device="cuda").to(dtype)
    w = ops.dequantize(m, torch.float32).to(dtype).double()
    expected, size = x.double() @ w, x.double().abs() @ w.abs()
    y = ops.qmatmul(x, m)
    assert (
        (y.double() - expected).abs() <= torch.finfo(dtype).eps * (expected.abs() + size / 16)
    ).all()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = [ops.qmatmul(x, m) for _ in range(3)]
    for _ in range(3):
        graph.replay()
        assert all(same_bits(a, y) for a in again)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3])
def test_a_row_that_is_not_finite_shows(bits: int, dtype: torch.dtype, value: float) -> None:
    """Whole numbers hold neither: a row becomes NaN, the one beside it does not."""
    from nybble import ops
    from tests.cases.qmatmul import random_packed

    m = random_packed(256, 9000, [bits], group=128).to(
        "cuda"
    )  # broad: narrow ones take one row this way
    x = torch.randn(2, 256, device="cuda").to(dtype)
    whole = ops.qmatmul(x, m)
    x[1, 200] = value
    y = ops.qmatmul(x, m)
    assert y[1].isnan().all() and same_bits(y[0], whole[0])
