"""Norms, gates, look-ups, codes, routes and dense products on a GPU: what the table of cases cannot say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nybble import ops

pytestmark = pytest.mark.gpu

HUGE = (1 << 31) + (1 << 20)  # elements: beyond what 32 bits count


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def test_an_id_outside_the_table_gives_nan() -> None:
    ids = torch.tensor([2, -1, 0, 7, 1 << 40], device="cuda")
    table = on_gpu(7, 40)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        y = ops.embedding(ids, table, dtype)
        assert torch.equal(y[[0, 2]], table[[2, 0]].to(dtype))
        assert y[[1, 3, 4]].isnan().all()


@pytest.mark.parametrize("D", [70, 4096, 20000])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_codes_show_what_is_not_finite(value: float, D: int) -> None:
    x, ones = on_gpu(3, D), torch.ones(D, device="cuda")
    x[1, D - 4] = value
    for codes, scales in (ops.quantize_int8(x), ops.layer_norm_int8(x, ones, None, 1e-5)):
        assert scales[1].isnan() and scales[[0, 2]].isfinite().all()
        assert not codes[1].any() and codes[[0, 2]].any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_codes_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    """No sums are in them, so every device has the same bits."""
    x = (torch.randn(300, 512) * torch.logspace(-36, 20, 300)[:, None]).to(dtype)
    codes, scales = ops.quantize_int8(x)
    got_codes, got_scales = ops.quantize_int8(x.cuda())
    assert torch.equal(got_codes.cpu(), codes)
    assert torch.equal(got_scales.cpu().nan_to_num(-1), scales.nan_to_num(-1))


@pytest.mark.parametrize("row", [[torch.nan, 1, 2], [1, torch.inf, 2], [-torch.inf] * 3])
@pytest.mark.parametrize("renormalize", [True, False])
def test_an_undefined_row_stays_visible(row: list[float], renormalize: bool) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], row], device="cuda")
    weights, experts = ops.moe_route(logits, 2, renormalize=renormalize)
    assert weights[0].isfinite().all() and experts[0].tolist() == [0, 2]
    assert weights[1].isnan().all() and experts[1].tolist() == [0, 1]


def test_float32_products_keep_their_bits() -> None:
    """TF32 would be off by 3e-4."""
    for M in (1, 64):
        x, w = on_gpu(M, 1024), on_gpu(256, 1024)
        exact = x.double() @ w.double().t()
        assert (ops.matmul(x, w).double() - exact).norm() < 2e-6 * exact.norm()


@pytest.mark.parametrize("M", [1, 40])
def test_autocast_changes_no_product(M: int) -> None:
    x, w = on_gpu(M, 64, dtype=torch.bfloat16), on_gpu(32, 64, dtype=torch.bfloat16)
    alone = ops.matmul(x, w)
    with torch.autocast("cuda", torch.float16):
        assert torch.equal(ops.matmul(x, w), alone)


def layer(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Kernels that may each begin while the one before them ends."""
    norm, up, down = weights
    for _ in range(8):
        y = ops.rms_norm(x, norm, 1e-5)
        gate = ops.matmul(y, up)
        x = ops.matmul(ops.silu_mul(*gate.chunk(2, -1)), down)
        ops.softcap_(x, 3.0)
    return x


@pytest.mark.parametrize("w_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("M", [1, 3, 20])
def test_a_graph_of_kernels_gives_the_same_bits(M: int, w_dtype: torch.dtype) -> None:
    x = on_gpu(M, 512, dtype=torch.bfloat16)
    weights = [
        on_gpu(512),
        on_gpu(2048, 512).div_(20).to(w_dtype),
        on_gpu(512, 1024).div_(30).to(w_dtype),
    ]
    first = layer(x, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(x, weights)
    for _ in range(20):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, first)


def rows_of(x: Tensor, f: Callable[[Tensor], Tensor]) -> None:
    """``f`` of all rows agrees, at the ends, with ``f`` of those rows alone."""
    y = f(x)
    for some in (slice(0, 2), slice(-2, None)):
        assert torch.equal(y[some], f(x[some].clone()))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 24 << 30,
    reason="needs 24 GB of GPU memory",
)
def test_beyond_two_to_the_31_elements() -> None:
    D = 4096
    x = torch.empty(HUGE // D, D, dtype=torch.float16, device="cuda").normal_()
    w = on_gpu(D)
    rows_of(x, lambda x: ops.rms_norm(x, w, 1e-5))
    rows_of(x, lambda x: ops.layer_norm(x, w, w, 1e-5))
    rows_of(x, lambda x: ops.quantize_int8(x)[0])
    rows_of(x, lambda x: ops.silu_mul(x, x))
    rows_of(x, lambda x: ops.silu_mul(*x.chunk(2, -1)))
    rows_of(x, lambda x: ops.softcap_(x.clone(), 2.0))
    rows_of(x, lambda x: ops.moe_route(x, 2)[1])
    ids = torch.tensor([0, x.shape[0] - 1], device="cuda")
    assert torch.equal(ops.embedding(ids, x, torch.float16), x[ids])
    for few in (on_gpu(1, D), on_gpu(9, D)):
        y = ops.matmul(few, x)
        assert (y[:, -2:] - few @ x[-2:].float().t()).abs().max() < 1e-2
