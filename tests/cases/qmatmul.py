"""Cases of the quantized product."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nybble.benchmarks.random_matrix import Segment, random_mixture
from nybble.ops.packed import PackedMatrix, dequantize, make_packed
from nybble.ops.tiles import ROWS
from tests.cases.base import DTYPES, F32, UNIT, Case, rounding

GROUPED = (  # K, N and the group of matrices of one width
    ("one-group", 768, 40, 768),
    ("last-group-shorter", 1152, 4000, 256),
    ("padded", 104, 24, 128),
    ("padded-and-odd", 101, 24, 128),
    ("split", 20480, 48, 128),
)


def random_packed(
    K: int,
    N: int,
    bits: list[int],
    *,
    group: int = 32,
    zeros: bool = False,
    shuffled: bool = False,
    bias: Any = None,
) -> PackedMatrix:
    """Random codes; group ``g`` has ``bits[g % len(bits)]`` bits."""
    G = max(1, -(-K // group))
    widths = torch.tensor([bits[g % len(bits)] for g in range(G)])
    groups = torch.arange(K) // group
    codes = (torch.rand(K, N) * (2.0 ** widths[groups])[:, None]).to(torch.uint8)
    return make_packed(
        codes,
        (torch.rand(G, N) * 0.02 + 0.001).half(),
        widths,
        groups,
        zeros=torch.rand(G, N) * (2.0**widths)[:, None] if zeros else None,
        perm=torch.randperm(K) if shuffled else None,
        bias=None if bias is None else torch.randn(N).to(bias),
    )


def qmatmul_case(name: str, x: Tensor, m: PackedMatrix, act_bits: int = 32) -> Case:
    """Error: float32 sums of K products, and for integer activations half a step of each run of 32 (GPU: of 128)."""
    W = dequantize(m).double()
    xd = x.double()
    expected = xd @ W + (0 if m.bias is None else m.bias.double())
    size = xd.abs() @ W.abs()
    if m.zeros is not None:  # code * scale and zero * scale are summed apart and may cancel
        size = size + xd.abs() @ dequantize_magnitude(m)
    # For many rows a GPU's matrix, and with zeros the difference before it, is rounded to x's type.
    rounded = x.dtype != torch.float32 and x.numel() > 8 * m.K
    bound = ((m.K + 8) * F32 + (2 * UNIT[x.dtype] if rounded else 0)) * size
    if act_bits < 32:
        step = 1.0 / (2 ** (act_bits - 1) - 1)
        bound = bound + 0.51 * step * _largest_of_runs(xd, W, m, ROWS)
    if x.dtype != torch.float32 and x.numel() <= 2 * m.K:  # a GPU may take whole numbers
        bound = bound + 2.0**-21.9 * _largest_of_runs(xd, W, m, 4 * ROWS)
    bound = (
        bound + rounding(expected, x.dtype) + (0 if m.bias is None else m.bias.double().abs() * F32)
    )
    bias = m.bias
    args = (x, m.weight, m.scales, m.zeros, m.perm, m.blocks, bias, m.N, act_bits)
    return Case("qmatmul", name, args, expected, bound)


def dequantize_magnitude(m: PackedMatrix) -> Tensor:
    """``(code + |zero|) * scale``: what is added up before the zero point cancels."""
    flipped = PackedMatrix(m.K, m.N, m.weight, m.scales, m.blocks, -m.zeros.abs(), m.perm)  # type: ignore[union-attr]
    return dequantize(flipped).double()


def _gathered(x: Tensor, m: PackedMatrix) -> Tensor:
    rows = m.blocks.shape[0] * ROWS
    if m.perm is None:
        return torch.nn.functional.pad(x, (0, rows - m.K))
    out = x[..., m.perm.clamp(min=0).long()]
    return out.masked_fill(m.perm < 0, 0.0)


def _largest_of_runs(x: Tensor, W: Tensor, m: PackedMatrix, run: int) -> Tensor:
    """``[.., N]``: the sum of ``abs(W)``, each row times the largest ``abs(x)`` of its run of packed rows."""
    packed = m.blocks.shape[0] * ROWS
    order = torch.arange(m.K) if m.perm is None else m.perm.long()
    rows = torch.zeros(-(-packed // run) * run, m.N, dtype=torch.float64)
    rows[: order.numel()][order >= 0] = W[order[order >= 0]].abs()
    runs = torch.nn.functional.pad(_gathered(x, m).abs(), (0, rows.shape[0] - packed))
    runs = runs.unflatten(-1, (-1, run))
    return runs.amax(-1, keepdim=True).expand_as(runs).flatten(-2) @ rows


def qmatmul_cases() -> Iterator[Case]:
    for act_bits in (32, 16, 8):
        for bits in (2, 3, 4, 5, 6, 8):
            for M in (1, 5):
                m = random_packed(96, 48, [bits])
                yield qmatmul_case(f"w{bits}-m{M}-a{act_bits}", torch.randn(M, 96), m, act_bits)
        m = random_packed(
            200, 37, [8, 6, 5, 4, 3, 2], zeros=True, shuffled=True, bias=torch.float32
        )
        for M in (0, 1, 2, 3, 8, 33, 150):
            yield qmatmul_case(
                f"mixed-odd-zeros-perm-bias-m{M}-a{act_bits}", torch.randn(M, 200), m, act_bits
            )
        m = random_packed(70, 24, [4], group=40)
        yield qmatmul_case(f"padded-groups-a{act_bits}", torch.randn(4, 70), m, act_bits)
        for dtype in (torch.float16, torch.bfloat16):
            m = random_packed(256, 64, [4], group=128, bias=dtype)
            yield qmatmul_case(f"{dtype}-a{act_bits}", torch.randn(3, 256).to(dtype), m, act_bits)
        m = random_packed(128, 16, [4])
        yield qmatmul_case(f"strided-a{act_bits}", torch.randn(6, 256)[:, 64:192], m, act_bits)
        yield qmatmul_case(f"batched-a{act_bits}", torch.randn(2, 3, 128), m, act_bits)
        yield qmatmul_case(f"zero-rows-a{act_bits}", torch.zeros(2, 128), m, act_bits)
        wild = torch.randn(2, 128) * torch.logspace(-6, 6, 128)
        yield qmatmul_case(f"wide-range-a{act_bits}", wild, m, act_bits)


def half_qmatmul_cases() -> Iterator[Case]:
    """float16 and bfloat16 in the numbers of rows, widths and lengths that a GPU's kernels tell apart."""
    for dtype in (torch.float16, torch.bfloat16):
        m = random_packed(333, 37, [5, 3, 8, 2, 6, 4], zeros=True, shuffled=True, bias=dtype)
        for M in (1, 2, 3, 7, 8, 9, 16, 17, 33):
            yield qmatmul_case(f"mixed-{dtype}-m{M}", torch.randn(M, 333).to(dtype), m)
        for bits in (2, 3, 4, 5, 6, 8):
            m = random_packed(1152, 72, [bits], group=64)
            yield qmatmul_case(f"w{bits}-{dtype}", torch.randn(4, 1152).to(dtype), m)
        m = random_packed(9216, 80, [4], group=128)
        yield qmatmul_case(f"long-{dtype}", torch.randn(11, 9216).to(dtype), m)
        m = random_packed(520, 2304, [3, 4], group=256, zeros=True)
        yield qmatmul_case(f"broad-{dtype}", torch.randn(2, 520).to(dtype), m)
        m = random_packed(256, 64, [4], group=256)
        x = torch.randn(256, 3).to(dtype).t()
        yield qmatmul_case(f"turned-{dtype}", x, m)
        x = torch.randn(3, 300).to(dtype)[:, 5:261]
        yield qmatmul_case(f"askew-{dtype}", x, m)


def few_rows_qmatmul_cases() -> Iterator[Case]:
    """One width in groups of 128 and more, up to 8 rows: what a GPU reads straight into registers."""
    for dtype in (torch.float16, torch.bfloat16):
        for bits in (2, 3, 4, 5, 6, 8):
            m = random_packed(1152, 72, [bits], group=128, zeros=bits % 2 == 0)
            yield qmatmul_case(f"few-w{bits}-{dtype}", torch.randn(5, 1152).to(dtype), m)
        m = random_packed(640, 333, [4], group=128, zeros=True, shuffled=True, bias=dtype)
        for M in range(1, 9):
            yield qmatmul_case(f"few-odd-{dtype}-m{M}", torch.randn(M, 640).to(dtype), m)
        for name, K, N, group in GROUPED:
            m = random_packed(K, N, [4], group=group)
            yield qmatmul_case(f"few-{name}-{dtype}", torch.randn(8, K).to(dtype), m)
        m = random_packed(256, 64, [3], group=128)
        x = torch.randn(3, 300).to(dtype)[:, 5:261]
        yield qmatmul_case(f"few-askew-{dtype}", x, m)
        m = random_packed(4096, 40, [4], group=128, shuffled=True)
        for M in (1, 8):  # so many numbers of x are put in order by a kernel of its own
            yield qmatmul_case(f"few-shuffled-{dtype}-m{M}", torch.randn(M, 4096).to(dtype), m)


def mixture_qmatmul_cases() -> Iterator[Case]:
    """A few widths, one after another, up to 8 rows: what a GPU brings in batches. Not all fill them, nor fours of blocks."""
    mixtures = {
        "exl2": (Segment(8, 1440, 32), Segment(4, 384, 128), Segment(3, 992, 128)),
        "odd": (Segment(5, 160, 96), Segment(2, 640, 32), Segment(6, 96, 64), Segment(4, 320, 256)),
        "small": (Segment(3, 32, 32), Segment(8, 64, 32), Segment(2, 96, 32)),
        "narrow": (Segment(4, 160, 32), Segment(3, 672, 128), Segment(2, 416, 256)),
    }
    for dtype, (name, segments) in itertools.product(
        (torch.float16, torch.bfloat16), mixtures.items()
    ):
        K = sum(segment.rows for segment in segments)
        # Two rows take whole numbers where the matrix is broad.
        broad = [(2, 6400, False, False)] if name == "narrow" else []
        for M, N, zeros, permuted in (
            (1, 104, False, False),
            (1, 40, True, True),
            (3, 40, True, True),
            (8, 600, True, False),
            *broad,
        ):
            m = random_mixture(K, N, segments, permuted=permuted, zeros=zeros)
            if m.zeros is not None:
                m.zeros.add_(torch.rand_like(m.zeros))
            yield qmatmul_case(f"{name}-{dtype}-m{M}-n{N}", torch.randn(M, K).to(dtype), m)


def narrow_qmatmul_cases() -> Iterator[Case]:
    """2 and 3 bits in groups of 128 and more, one and two rows: what a GPU multiplies in whole numbers."""
    for dtype, bits, M in itertools.product((torch.float16, torch.bfloat16), (2, 3), (1, 2)):
        kind = f"w{bits}-{dtype}-m{M}"
        m = random_packed(1152, 72, [bits], group=128)
        x = torch.randn(M, 1152)
        yield qmatmul_case(f"narrow-{kind}", x.to(dtype), m)
        yield qmatmul_case(f"narrow-tiny-{kind}", (x * 1e-6).to(dtype), m)
        wild = x * torch.logspace(-4, 4, 1152)[torch.randperm(1152)]
        yield qmatmul_case(f"narrow-wide-range-{kind}", wild.to(dtype), m)
        x[:, 100:700] = 0
        yield qmatmul_case(f"narrow-holes-{kind}", x.to(dtype), m)
        m = random_packed(640, 333, [bits], group=128, zeros=True, shuffled=True, bias=dtype)
        yield qmatmul_case(f"narrow-odd-{kind}", torch.randn(M, 640).to(dtype), m)
        for name, K, N, group in (*GROUPED, ("broad", 264, 8500, 128)):
            m = random_packed(K, N, [bits], group=group, zeros=K < 1000)
            yield qmatmul_case(f"narrow-{name}-{kind}", torch.randn(M, K).to(dtype), m)
        m = random_packed(256, 64, [bits], group=128)
        x = torch.randn(M, 300).to(dtype)[:, 5:261]
        yield qmatmul_case(f"narrow-askew-{kind}", x, m)


def many_rows_qmatmul_cases() -> Iterator[Case]:
    """What tiles of many rows and columns treat specially: the ends of rows, columns and k, cut tiles, odd strides."""
    for dtype in (torch.float16, torch.bfloat16):
        m = random_packed(1056, 333, [4, 3, 8, 2, 6, 5], zeros=True, shuffled=True, bias=dtype)
        for M in (17, 64, 65, 300):
            yield qmatmul_case(f"many-mixed-{dtype}-m{M}", torch.randn(M, 1056).to(dtype), m)
        m = random_packed(1024, 528, [4], group=128)
        for M in (33, 64, 130, 257, 600):
            yield qmatmul_case(f"many-four-{dtype}-m{M}", torch.randn(M, 1024).to(dtype), m)
        m = random_packed(1001, 48, [5], group=96, zeros=True)
        broad = torch.randn(70, 1010).to(dtype)
        yield qmatmul_case(f"many-odd-{dtype}", broad[:, 3:1004], m)
        m = random_packed(4096, 64, [4], group=128)
        for M in (12, 30, 40, 100, 260):
            yield qmatmul_case(f"many-cut-{dtype}-m{M}", torch.randn(M, 4096).to(dtype), m)
        m = random_packed(1152, 48, [4], group=384, zeros=True)
        for M in (20, 50):
            yield qmatmul_case(f"many-runs-{dtype}-m{M}", torch.randn(M, 1152).to(dtype), m)
        groups = torch.cat([torch.arange(512) // 128, 4 + torch.arange(512) // 256])
        scales = (torch.rand(6, 48) * 0.02 + 0.001).half()
        codes = torch.randint(16, (1024, 48), dtype=torch.uint8)
        m = make_packed(codes, scales, torch.full((6,), 4), groups)
        for M in (12, 20):
            yield qmatmul_case(f"many-two-groups-{dtype}-m{M}", torch.randn(M, 1024).to(dtype), m)
        # Of every size and sign, and zeros: some kernels multiply scales by powers of two.
        scales = torch.exp2(torch.rand(16, 80) * 21 - 20) * torch.randint(-1, 2, (16, 80))
        codes = torch.randint(16, (2048, 80), dtype=torch.uint8)
        m = make_packed(codes, scales.half(), torch.full((16,), 4), torch.arange(2048) // 128)
        for M in (20, 50, 100):
            yield qmatmul_case(f"many-scales-{dtype}-m{M}", torch.randn(M, 2048).to(dtype), m)


def fused_qmatmul_cases() -> Iterator[Case]:
    """What is done to x first and what is added last, beside the product of the input so prepared."""
    for dtype, (K, widths, group, begin, rows, shuffled) in itertools.product(
        DTYPES,
        [
            (96, [4, 3], 32, 3, 3, False),
            (384, [4], 128, 8, 3, False),
            (384, [3], 128, 8, 1, False),
            (640, [3, 4], 128, 8, 3, True),
        ],
    ):
        m = random_packed(K, 40, widths, group=group, bias=dtype, shuffled=shuffled)
        x = torch.randn(2, rows, K).to(dtype)
        # A view, as a padded product gives it.
        both = torch.randn(2 * rows - 1, 2 * K + 16).to(dtype)[:, begin : begin + 2 * K]
        weight, add = torch.randn(K), torch.randn(2, rows, 40).to(dtype)
        gate, up = both.double().chunk(2, -1)
        normed = (
            x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
        )
        prepared = {
            "norm-add": (x, normed, (weight, 1e-5, -1, add)),
            "silu": (both, torch.nn.functional.silu(gate) * up, (None, 0.0, 0, None)),
            "gelu": (both, torch.nn.functional.gelu(gate) * up, (None, 0.0, 1, None)),
            "gelu-tanh": (
                both,
                torch.nn.functional.gelu(gate, approximate="tanh") * up,
                (None, 0.0, 2, None),
            ),
            "add-strided": (
                x,
                x.double(),
                (None, 0.0, -1, torch.randn(2, rows, 80).to(dtype)[..., 20:60]),
            ),
        }
        for name, (given, inner, extra) in prepared.items():
            plain = qmatmul_case("", inner.to(dtype), m)
            added = 0 if extra[3] is None else extra[3].double()
            expected = plain.expected + added
            # f(x) is rounded to x's dtype before the product; the float32 steps of f count 32 units.
            inner_error = rounding(inner, dtype) * 2 + 32 * F32 * inner.abs()
            bound = (
                plain.bound
                + inner_error @ dequantize(m).double().abs()
                + rounding(expected, dtype)
                + F32 * expected.abs()
            )
            args = (given, *plain.args[1:9], *extra)
            yield Case("qmatmul", f"{name}-{dtype}-{K}-m{rows}", args, expected, bound)
