"""Cases of the ops on 8-bit codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.cases.base import DTYPES, F32, UNIT, Case, rounding

# Half a step for the rounding to a code, and what float32 does to a number of up to 127 steps.
HALF_STEP = 0.5 + 127 * 8 * F32


def _scales(y: Tensor) -> Tensor:
    """``max|y| / 127`` of each row, in float64."""
    return y.abs().amax(-1) / 127 if y.shape[-1] else y.new_zeros(y.shape[:-1])


def _steps(y: Tensor) -> Tensor:
    """What the codes are rounded from."""
    scale = _scales(y)[..., None]
    return torch.where(scale > 0, y / scale, 0.0)


def quantize_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in ((1, 1), (3, 5, 33), (0, 16), (4, 0), (2, 4097), (130,)):
            x = (torch.randn(shape) * 3).to(dtype)
            xd = x.double()
            yield Case(
                "quantize_int8",
                f"{dtype}-{shape}",
                (x,),
                (_steps(xd), _scales(xd)),
                (HALF_STEP, 2 * F32 * _scales(xd)),
            )
    # Lengths on both sides of what a GPU's threads hold at once.
    for dtype in DTYPES:
        for D in (72, 1032, 4104, 8200, 16384, 16392):
            x = torch.randn(3, D).to(dtype)
            expected = (_steps(x.double()), _scales(x.double()))
            bound = (HALF_STEP, 2 * F32 * expected[1])
            yield Case("quantize_int8", f"{dtype}-long-{D}", (x,), expected, bound)
    x = torch.randn(6, 128)[:, 16:81]
    expected = (_steps(x.double()), _scales(x.double()))
    yield Case("quantize_int8", "strided", (x,), expected, (HALF_STEP, 2 * F32 * expected[1]))
    yield Case("quantize_int8", "transposed", (x.t(),), _of_transposed(x), (HALF_STEP, 1e-6))
    ties = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5], [0.0] * 7])
    codes = torch.tensor([[127, 0, 2, 2, 0, -2, -126], [0] * 7])
    scales = torch.tensor([1.0, 0.0], dtype=torch.float64)
    yield Case("quantize_int8", "ties-and-zeros", (ties,), (codes, scales), (0.0, 0.0))
    tiny = torch.tensor([[1e-31, -1e-35], [2e-30, -1e-30]])
    expected = torch.tensor([[0, 0], [127, -64]]), torch.tensor([0.0, 2e-30 / 127]).double()
    yield Case("quantize_int8", "tiny", (tiny,), expected, (0.0, 1e-37))


def _of_transposed(x: Tensor) -> tuple[Tensor, Tensor]:
    turned = x.t().double()
    return _steps(turned), _scales(turned)


def layer_norm_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape, w_dtype in (((1, 8), dtype), ((3, 5, 33), torch.float32), ((0, 16), dtype),
                               ((2, 4096), dtype), ((7, 1), dtype), ((3, 0), dtype), ((2, 72), dtype),
                               ((2, 1032), dtype), ((2, 8200), dtype), ((2, 16392), torch.float32)):  # fmt: skip
            x = (torch.randn(shape) * 3 + 1).to(dtype)
            w, b = torch.randn(shape[-1]).to(w_dtype), torch.randn(shape[-1]).to(w_dtype)
            xd, mean = x.double(), x.double().mean(-1, keepdim=True)
            deviation = ((xd - mean).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
            y = (xd - mean) / deviation * w.double() + b.double()
            # As for layer_norm: the mean is rounded once to float32, its error divided by the deviation.
            slack = (
                32
                * F32
                * ((xd.abs() + mean.abs()) / deviation * w.double().abs() + b.double().abs())
            )
            scale = _scales(y)
            error = (slack.amax(-1) if shape[-1] else scale) / 127
            codes = HALF_STEP + (slack / scale[..., None]).nan_to_num() + 128 * UNIT[dtype] + 0 * y
            yield Case(
                "layer_norm_int8",
                f"{dtype}-{shape}",
                (x, w, b, 1e-5),
                (_steps(y), scale),
                (codes, error + 2 * UNIT[dtype] * scale),
            )


def matmul_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for M, N, K in ((1, 33, 70), (0, 8, 8), (5, 1, 1), (67, 66, 257), (3, 0, 4), (2, 5, 0), (4, 8, 1024)):  # fmt: skip
            yield _matmul(f"{dtype}-{M}x{N}x{K}", (M, K), N, dtype, biased=bool(M % 2))
    yield _matmul("batched", (2, 3, 40), 12, torch.float32, biased=True)
    # Each way of a GPU: few rows, tiles of 64, 128 and 256 rows that share K or not, K and N off the tiles' grid.
    for M, N, K in ((16, 40, 4112), (17, 130, 144), (33, 128, 8192), (100, 260, 1040), (128, 33, 4096),
                    (260, 300, 272), (520, 66, 80)):  # fmt: skip
        yield _matmul(f"tiles-{M}x{N}x{K}", (M, K), N, torch.float16, biased=bool(M % 2))
    yield _misaligned()
    for M in (3, 40, 300):
        yield _expanded(M)
    # Beyond one panel of rows, and sums that only just fit int32.
    yield _matmul("many-rows", (300, 4096), 5, torch.float32, biased=False)
    K = (1 << 17) - 1
    x, w = torch.full((2, K), -128, dtype=torch.int8), torch.full((3, K), -128, dtype=torch.int8)
    w[1] = 127
    w[2, ::2] = 127
    args = (x, torch.ones(2), w, torch.ones(3), None, torch.float32)
    exact = x.double() @ w.double().t()
    yield Case("int8_matmul", "longest", args, exact, F32 * exact.abs())
    both = torch.randint(-128, 128, (6, 200)).to(torch.int8)
    x, w, scale = both[:, 33:130], torch.randint(-128, 128, (9, 97)).to(torch.int8), torch.rand(6)
    exact = (x.double() @ w.double().t()) * scale.double()[:, None]
    args = (x, scale, w, torch.ones(9), None, torch.float32)
    yield Case("int8_matmul", "strided", args, exact, 2 * F32 * exact.abs())


def _misaligned() -> Case:
    """Rows that begin at odd addresses."""
    x = torch.randint(-128, 128, (40 * 320 + 1,)).to(torch.int8)[1:].view(40, 320)
    w = torch.randint(-128, 128, (20 * 320 + 3,)).to(torch.int8)[3:].view(20, 320)
    exact = x.double() @ w.double().t()
    args = (x, torch.ones(40), w, torch.ones(20), None, torch.float32)
    return Case("int8_matmul", "misaligned", args, exact, F32 * exact.abs())


def _expanded(M: int) -> Case:
    """One row M times, with stride 0."""
    x = torch.randint(-128, 128, (1, 512)).to(torch.int8).expand(M, 512)
    w = torch.randint(-128, 128, (130, 512)).to(torch.int8)
    exact = x.double() @ w.double().t()
    args = (x, torch.ones(M), w, torch.ones(130), None, torch.float32)
    return Case("int8_matmul", f"expanded-{M}", args, exact, F32 * exact.abs())


def _matmul(
    name: str, x_shape: tuple[int, ...], N: int, dtype: torch.dtype, *, biased: bool
) -> Case:
    K = x_shape[-1]
    x = torch.randint(-128, 128, x_shape).to(torch.int8)
    w = torch.randint(-128, 128, (N, K)).to(torch.int8)
    x_scale, w_scale = torch.rand(x_shape[:-1]) * 0.01, torch.rand(N) * 0.01
    bias = torch.randn(N) if biased else None
    product = (x.double() @ w.double().t()) * x_scale.double()[..., None] * w_scale.double()
    expected = product if bias is None else product + bias.double()
    bound = 4 * F32 * (product.abs() + expected.abs()) + rounding(expected, dtype)
    return Case("int8_matmul", name, (x, x_scale, w, w_scale, bias, dtype), expected, bound)
