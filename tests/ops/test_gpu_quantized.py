"""Caches, the quantizer and 8-bit products on a GPU beyond the table: the CPU's bits, what is not looked at, graphs, sizes
past 2^31."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nybble import ops
from tests.cases.quantize import slots

pytestmark = pytest.mark.gpu


def caches(bits: int, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and halves of N tokens of 2 heads of 64, on the GPU."""
    shape = (1, N, 2)
    codes = torch.full((*shape, 8 * bits), 0x5A, dtype=torch.uint8, device="cuda")
    scales = torch.full((*shape, 2), -7.0, dtype=torch.float16, device="cuda")
    return codes, scales, torch.randn(*shape, 64, device="cuda").half()


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_the_cpu(bits: int) -> None:
    """Every magnitude a half number has, NaN and infinities among them."""
    codes, scales, x = caches(bits, 4096)
    x *= torch.logspace(-8, 4, 4096, device="cuda").view(1, -1, 1, 1).half()
    x.view(-1)[::997], x.view(-1)[::1009] = torch.nan, torch.inf
    runs = torch.tensor([[0, 1500], [1501, 4096]])
    there, back = [t.cpu() for t in (codes, scales)], torch.zeros_like(x)
    ops.kv_quantize_(codes, scales, x, runs.cuda(), bits=bits)
    ops.kv_quantize_(*there, x.cpu(), runs, bits=bits)
    ops.kv_dequantize_(back, codes, scales, runs.cuda(), bits=bits)
    assert torch.equal(codes.cpu(), there[0])
    assert torch.equal(scales.cpu().view(torch.int16), there[1].view(torch.int16))
    expected = ops.kv_dequantize_(torch.zeros_like(x).cpu(), *there, runs, bits=bits)
    assert torch.allclose(back.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_runs_outside_a_cache_are_left_alone() -> None:
    codes, scales, x = caches(4, 8)
    room = torch.full((1, 24, 2, 32), 0x5A, dtype=torch.uint8, device="cuda")
    inner = room[:, 8:16]
    runs = torch.tensor([[-5, 2], [7, 1 << 62], [6, 3], [1 << 62, (1 << 63) - 1]], device="cuda")
    ops.kv_quantize_(inner, scales, x, runs, bits=4)
    assert (room[:, :8] == 0x5A).all() and (room[:, 16:] == 0x5A).all()
    ops.kv_quantize_(codes, scales, x, torch.tensor([[0, 2], [7, 8]], device="cuda"), bits=4)
    assert torch.equal(inner, codes)


def test_a_knapsack_that_the_cpu_refuses_is_all_minus_one() -> None:
    cost, loss, first = (t.cuda() for t in slots([4, 3, 5]))
    heat = torch.ones(2, dtype=torch.float64, device="cuda")
    broken, endless = first.clone(), loss.clone()
    broken[1], endless[0] = 1 << 40, torch.nan
    for case in ((cost, loss, broken), (cost, endless, first), (-cost - 1, loss, first)):
        assert ops.anneal_knapsack(*case, 100, heat, steps=3, seed=1).tolist() == [-1] * 3
    assert ops.anneal_knapsack(cost, loss, first, 100, -heat, steps=3, seed=1).tolist() == [-1] * 3


def test_a_knapsack_is_the_cpus() -> None:
    """Tables that fit shared memory, and some that do not."""
    for many in (40, 3000):
        cost, loss, first = slots([5, 1, 9] * many)
        heat = 1e-3 * 0.8 ** torch.arange(20).double()
        options = (cost, loss, first)
        budget = int(cost.sum()) // 4
        expected = ops.anneal_knapsack(*options, budget, heat, steps=300, seed=9)
        got = ops.anneal_knapsack(
            *(t.cuda() for t in options), budget, heat.cuda(), steps=300, seed=9
        )
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("M", [1, 9, 16, 17, 40, 100, 128, 129, 300, 1000])
@pytest.mark.parametrize("N, K", [(64, 4096), (1000, 512), (4096, 1040), (130, 4111)])
def test_products_are_exact_and_captured(M: int, N: int, K: int) -> None:
    """The same bits as the formula, every way of multiplying, twice, once from a graph."""
    x = torch.randint(-128, 128, (M, K), dtype=torch.int8, device="cuda")
    w = torch.randint(-128, 128, (N, K), dtype=torch.int8, device="cuda")
    x_scale, w_scale, bias = (torch.rand(n, device="cuda") for n in (M, N, N))
    sums = (x.double() @ w.double().t()).float()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        expected = (sums * (x_scale[:, None] * w_scale) + bias).to(dtype)
        args = (x, x_scale, w, w_scale, bias)
        assert torch.equal(ops.int8_matmul(*args, dtype=dtype), expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.int8_matmul(*args, dtype=dtype)
        y.fill_(torch.nan)
        graph.replay()
        assert torch.equal(y, expected)


def test_more_than_2_to_the_31_elements() -> None:
    """Indices of 64 bits: each op's last elements."""
    x = torch.randint(-128, 128, (2, 65536), dtype=torch.int8, device="cuda")
    w = torch.randint(-128, 128, (40000, 65536), dtype=torch.int8, device="cuda")
    for rows in (x, x.repeat(10, 1), x.repeat(70, 1)):
        scale = torch.ones(rows.shape[0], device="cuda")
        y = ops.int8_matmul(rows, scale, w, torch.ones(40000, device="cuda"))
        expected = rows.double() @ w[-9:].double().t()
        assert torch.equal(y[:, -9:].double(), expected.float().double())
    del w
    wide = torch.randint(-128, 128, (70000, 64), dtype=torch.int8, device="cuda")
    w = torch.randint(-128, 128, (32768, 64), dtype=torch.int8, device="cuda")
    scales = torch.ones(70000, device="cuda"), torch.ones(32768, device="cuda")
    y = ops.int8_matmul(wide, scales[0], w, scales[1], dtype=torch.float16)
    expected = wide[-5:].double() @ w.double().t()
    assert torch.equal(y[-5:], expected.half())
    del y
    x = torch.randn(1, (1 << 21) + 8, 16, 64, device="cuda", dtype=torch.float16)
    codes = ops.fp8_encode_(torch.empty_like(x, dtype=torch.uint8), x)
    last = x[0, -1].view(torch.int16).to(torch.int32) >> 8 & 0xFF
    assert torch.equal(codes[0, -1].to(torch.int32), last)
    scales = torch.zeros(*x.shape[:3], 2, dtype=torch.float16, device="cuda")
    every = torch.tensor([[0, x.shape[1]]], device="cuda")
    ops.kv_quantize_(codes, scales, x, every, bits=8)
    tail = x[:, -1:].contiguous()
    few = torch.zeros_like(tail, dtype=torch.uint8), torch.zeros_like(scales[:, -1:])
    ops.kv_quantize_(*few, tail, torch.tensor([[0, 1]], device="cuda"), bits=8)
    assert torch.equal(codes[:, -1:], few[0]) and torch.equal(scales[:, -1:], few[1])
