"""The old quantizer's functions: recorded calls, worked examples, what was broken there, and calls that must be refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.compat import exllamav2_ext as ext
from nybble.formats.exl2 import Exl2Linear
from nybble.ops.packed import dequantize

ROOT = Path(__file__).resolve().parents[2]
ABSENT = torch.empty((1, 1), device="meta")


@pytest.mark.parametrize("family", ["quantize", "hadamard", "loader"])
def test_recorded_calls(data: Path, family: str) -> None:
    tool, calls = data / "golden" / "replay.py", data / "golden" / "ext"
    done = subprocess.run(
        [sys.executable, tool, calls, "--device", "cpu", "--family", family, "--path", ROOT, "-v"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# One column, row i = (7i + 3) mod 2^bits, i = 0 ... 31.
WORDS = {
    2: "1B1B1B1B 1B1B1B1B",
    3: "53977053 70539770 97705397",
    4: "4D6F81A3 C5E7092B 4D6F81A3 C5E7092B",
    5: "4DFC4543 78245BA3 0753617D 4B276CF4 E55C7066",
    6: "9F611283 90BBD2D9 B2579740 8F201EB3 9CAB91D5 71538703",
    8: "18110A03 342D261F 5049423B 6C655E57 88817A73 A49D968F C0B9B2AB DCD5CEC7",
}


@pytest.mark.parametrize("bits", WORDS)
def test_pack_columns_example(bits: int) -> None:
    codes = ((7 * torch.arange(32) + 3) % 2**bits).to(torch.int16)[:, None]
    words = torch.zeros(bits, 1, dtype=torch.int32)
    ext.pack_columns(codes, words, bits)
    assert " ".join(f"{w & 0xFFFFFFFF:08X}" for w in words.flatten().tolist()) == WORDS[bits]


def test_pack_rows_example() -> None:
    """0 is padding and reads 15; in the middle of a word it leaves its neighbours alone."""
    words = torch.zeros(2, 1, dtype=torch.int32)
    rows = [[1, 2, 3, 16, 5, 6, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1]]
    ext.pack_rows_4(torch.tensor(rows, dtype=torch.int16), words)
    assert [w & 0xFFFFFFFF for w in words.flatten().tolist()] == [0xFF54F210, 0x000000F0]


def test_quantize_example() -> None:
    x, scale = torch.tensor([[0.25], [0.75], [-0.25], [9.0]]), torch.tensor([0.5])
    values, codes = torch.zeros_like(x), torch.zeros(4, 1, dtype=torch.int16)
    ext.quantize(x, values, scale, codes, 8.0, 15.0)
    assert (codes.flatten().tolist(), values.flatten().tolist()) == ([8, 10, 8, 15], [0, 1, 0, 3.5])


def test_quantize_err_adds_where_the_old_one_did() -> None:
    sums = torch.ones(3, 128)
    ext.quantize_err(torch.tensor([[0.3]]), sums, torch.tensor([0.5]), 8, 15, 2, 0.5, 1.5, 2)
    assert torch.allclose(sums[:, 0], torch.tensor([1.0025, 1.04, 1.09]))
    assert bool((sums[:, 1:] == 1).all())
    x, wide = torch.randn(5, 700), torch.zeros(2, 128)
    ext.quantize_err(x, wide, torch.full((700,), 0.3), 8, 15, 3.5, 0.9, 1.1, 1)
    for place in (0, 46, 47, 127):
        columns = [c for c in range(700) if c // 4 % 128 == place]
        alone = torch.zeros(2, 128)
        ext.quantize_err(
            x[:, columns], alone, torch.full((len(columns),), 0.3), 8, 15, 3.5, 0.9, 1.1, 1
        )
        assert torch.allclose(wide[:, place], alone.sum(1), rtol=1e-5)


def test_quantize_range_example() -> None:
    w = torch.tensor([[0.3, 0.8, -1.1, 4.5], [0.1, 0.2, 0.3, 0.4]])
    U = torch.tensor([[2.0, 1.0], [torch.nan, 0.5]])
    quant, error = torch.full_like(w, 7), torch.full_like(w, 7)
    codes = torch.full((2, 4), 7, dtype=torch.int16)
    ext.quantize_range(quant, torch.full((4,), 0.5), codes, 8.0, 15.0, U, w, error, 0, 1)
    assert codes.tolist() == [[9, 10, 6, 15], [7] * 4]
    assert quant.tolist() == [[0.5, 1, -1, 3.5], [7] * 4]
    assert torch.allclose(error, torch.tensor([[-0.1, -0.1, -0.05, 0.5], [7.0] * 4]))
    assert torch.allclose(w, torch.tensor([[0.5, 1, -1, 3.5], [0.2, 0.3, 0.35, -0.1]]))


def find_scales(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """The old converter's search in one group: scale indices, largest scale, scales, place of the best factor."""
    zero, last = 2.0 ** (bits - 1), 2.0**bits - 1
    base = (x.abs().amax(0) + 1e-12) / (last / 2)
    top = base.max()
    index = (16 * (base / top).sqrt()).round().clamp(1, 16).to(torch.int16)
    trial = (index / 16).square() * top
    sums = torch.zeros(97, 128)
    ext.quantize_err(x, sums, trial, zero, last, 3.5, 0.7, 1.2, 96)
    best = int(sums.sum(1).argmin())
    largest = (top * (1.2 * best / 96 + 0.7 * (1 - best / 96))).half()
    scales = (index.float().square() * (largest.float() / 256).half().float()).half().float()
    return index, largest, scales, best


def test_scale_search_example() -> None:
    r, c = torch.arange(32.0)[:, None], torch.arange(4.0)
    x = (1 + 3 * r + 7 * c).double().sin().pow(3).mul((c + 1) / 10).float()
    index, largest, scales, best = find_scales(x, 4)
    assert (index.tolist(), best) == ([8, 11, 14, 16], 73)
    bits = [largest.view(torch.int16).item(), *scales.half().view(torch.int16).tolist()]
    assert bits == [0x2B5E, 0x235E, 0x26F7, 0x29A4, 0x2B5E]
    codes = torch.zeros(32, 4, dtype=torch.int16)
    ext.quantize_range_inplace(x, scales, codes, 8.0, 15.0, 0, 32)
    assert codes[:4].tolist() == [[12, 15, 10, 8], [5, 1, 5, 8], [10, 15, 12, 8], [7, 1, 3, 8]]


def test_a_converted_layer_reads_back_as_quantized() -> None:
    """The old converter's steps on one layer of two widths; the reader of the format must give the same weights."""
    K, N, widths = 96, 32, [6, 4, 4]
    inputs = torch.randn(300, K) @ torch.randn(K, K)
    hessian = inputs.T @ inputs + 0.1 * torch.eye(K)
    order = hessian.diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(hessian[order][:, order].double())
    U = torch.linalg.cholesky(inverse, upper=True).float()
    w, quant, error = torch.randn(K, N), torch.zeros(K, N), torch.zeros(K, N)
    codes = torch.zeros(K, N, dtype=torch.int16)
    packed, indices, largest, groups = [], [], [], []
    for g, bits in enumerate(widths):
        a, b = 32 * g, 32 * g + 32
        index, top, scales, _ = find_scales(w[a:b], bits)
        grid = (2.0 ** (bits - 1), 2.0**bits - 1)
        ext.quantize_range(quant, scales, codes, *grid, U, w, error, a, b)
        out = torch.zeros(bits, N, dtype=torch.int32)
        ext.pack_columns(codes[a:b], out, bits)
        groups += [bits, sum(len(p) for p in packed)]
        packed.append(out)
        indices.append(index)
        largest.append(top)
    q_scale = torch.zeros(len(widths), N // 8, dtype=torch.int32)
    ext.pack_rows_4(torch.stack(indices), q_scale)
    layer = Exl2Linear(
        q_weight=torch.cat(packed),
        q_scale=q_scale,
        q_scale_max=torch.stack(largest),
        q_groups=torch.tensor(groups, dtype=torch.int16),
        q_invperm=order.argsort().int(),
    )
    layer.validate()
    read = dequantize(layer.to_packed()).half().float()  # the old matrix held halves
    assert torch.equal(read, quant[order.argsort()])


def anneal(slots: list[list[tuple[int, float]]], max_cost: int, norm: float = 2.0) -> Any:
    return ext.sim_anneal(slots, max_cost, 2.0, 0.995, 0.0001, 200, norm)


def test_sim_anneal_example() -> None:
    slots = [[(10, 0.5), (20, 0.1), (30, 0.01)]] * 4
    solution, indices, total, cost, largest = anneal(slots, 1000)
    assert (indices, cost) == ([2, 2, 2, 2], 120)
    assert solution == [(30, pytest.approx(0.01))] * 4
    assert (total, largest) == (pytest.approx(0.0004), pytest.approx(0.01))
    assert anneal(slots, 80)[1:4:2] == ([1, 1, 1, 1], 80)
    assert anneal(slots, 39)[1:4:2] == ([0, 0, 0, 0], 40)
    assert anneal(slots, (1 << 64) - 1)[1] == [2, 2, 2, 2]


def test_sim_anneal_leaves_a_start_that_is_too_dear() -> None:
    """The old one returned the start here: no single move brings 200 down to 40."""
    assert anneal([[(50, 0.0), (10, 1.0)]] * 4, 40)[1:4:2] == ([1, 1, 1, 1], 40)


def shorts(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int16)


def words(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


f = torch.ones
GRID = [8.0, 15.0]
# Arguments each function accepts.
SOUND: dict[str, Callable[[], list[Any]]] = {
    "pack_rows_4": lambda: [shorts(3, 16), words(3, 2)],
    "pack_columns": lambda: [shorts(16, 4), words(2, 4), 4],
    "quantize": lambda: [f(4, 8), f(4, 8), f(8), shorts(4, 8), *GRID],
    "quantize_range_inplace": lambda: [f(4, 8), f(8), shorts(4, 8), *GRID, 1, 3],
    "quantize_err": lambda: [f(4, 8), f(6, 128), f(8), *GRID, 3.5, 0.7, 1.2, 5],
    "quantize_range": lambda: [f(4, 8), f(8), shorts(4, 8), *GRID, torch.eye(4), f(4, 8), f(4, 8), 1, 3],
    "sim_anneal": lambda: [[[(1, 0.5), (2, 0.25)], [(3, 0.5)]], 5, 2.0, 0.9, 0.01, 10, 2.0],
    "had_paley": lambda: [f(8, 8, dtype=torch.float16)],
    "had_paley2": lambda: [f(12, 12, dtype=torch.float16)],
    "stloader_read": lambda: [__file__, 3, 8, f(2, 2)],
}  # fmt: skip
# What wrong() gives and is not wrong there: (function, argument, index in the list).
FREE = {
    ("quantize_err", 0, 7),  # one row fewer
    ("quantize_err", 6, 3),  # NaN, which the sums show
    ("quantize_err", 7, 3),
    ("sim_anneal", 5, 5),  # -1 iterations are none
}
ABSENT_OK = {("quantize", 3), ("quantize_range_inplace", 2), ("quantize_range", 2)}


def wrong(name: str, at: int, value: Any) -> list[Any]:
    """What must be refused in place of ``value``."""
    if isinstance(value, int):
        return [None, "1", 1.5, f(1), True, -1]
    if isinstance(value, float):
        return [None, "1", f(1), float("nan")]
    if not isinstance(value, Tensor):
        return [None, 1, f(1), ["x"]]
    absent = [] if (name, at) in ABSENT_OK else [ABSENT]
    if name == "stloader_read":
        return [None, 1, *absent, f(8)[::2], f(1), f(0)]
    dtypes = (torch.float64, torch.bfloat16, torch.int64, torch.uint8)
    return [
        None,
        1.0,
        *absent,
        *(value.to(t) for t in dtypes),
        *(value.narrow(d, 0, value.shape[d] - 1) for d in range(value.dim())),
        value.unsqueeze(0),
        value.flatten()[0],
    ]


CALLS = [
    (name, at, n)
    for name, make in SOUND.items()
    for at, value in enumerate(make())
    for n in range(len(wrong(name, at, value)))
    if (name, at, n) not in FREE
]


@pytest.mark.parametrize("name", SOUND)
def test_sound_calls(name: str) -> None:
    getattr(ext, name)(*SOUND[name]())


@pytest.mark.parametrize(("name", "at", "n"), CALLS, ids=str)
def test_wrong_arguments_are_refused(name: str, at: int, n: int) -> None:
    arguments = SOUND[name]()
    arguments[at] = wrong(name, at, arguments[at])[n]
    before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    with pytest.raises((RuntimeError, TypeError)):
        getattr(ext, name)(*arguments)
    for now, then in zip(arguments, before, strict=True):
        assert not isinstance(now, Tensor) or now.is_meta or torch.equal(now, then)


HUGE = 1 << 64
REFUSED: list[tuple[str, list[Any]]] = [
    ("pack_rows_4", [shorts(1, 8) * 17, words(1, 1)]),
    ("pack_rows_4", [shorts(1, 8) * -1, words(1, 1)]),
    ("pack_rows_4", [shorts(1, 12), words(1, 1)]),
    *(("pack_columns", [shorts(32, 4), words(abs(b), 4), b]) for b in (-1, 0, 1, 7, 9, 32)),
    ("pack_columns", [shorts(8, 4), words(0, 4), 3]),
    ("pack_columns", [shorts(8, 4), words(1, 4), 3]),
    ("pack_columns", [shorts(8, 4) * 16, words(1, 4), 4]),
    ("quantize", [f(4, 8), f(4, 8), f(8), shorts(4, 8), 16.0, 15.0]),
    ("quantize", [f(4, 8), f(4, 8), f(8), shorts(4, 8), 7.5, 15.0]),
    ("quantize", [f(4, 8), f(4, 8), f(8), shorts(4, 8), 8.0, 256.0]),
    ("quantize", [f(4, 8), f(4, 8), f(8), shorts(4, 8), 8.0, float("inf")]),
    ("quantize_range_inplace", [f(4, 8), f(8), shorts(4, 8), *GRID, 3, 2]),
    ("quantize_range_inplace", [f(4, 8), f(8), shorts(4, 8), *GRID, 0, 5]),
    ("quantize_err", [f(4, 8), f(1, 128), f(8), *GRID, 3.5, 0.7, 1.2, 0]),
    ("quantize_err", [f(4, 8), f(6, 128), f(8), *GRID, 0.0, 0.7, 1.2, 5]),
    (
        "quantize_range",
        [f(4, 8), f(8), shorts(4, 8), *GRID, torch.zeros(4, 4), f(4, 8), f(4, 8), 1, 3],
    ),
    *(
        ("sim_anneal", [slots, 5, 2.0, 0.9, 0.01, 10, 2.0])
        for slots in (
            [],
            [[]],
            [[(1, 0.5)], []],
            [[(1, 0.5, 2)]],
            [[1]],
            [[(-1, 0.5)]],
            [[(HUGE, 0.5)]],
            [[(HUGE - 1, 0.5)]],
            [[(1, "x")]],
            [[(1, float("nan"))]],
        )
    ),
    ("sim_anneal", [[[(1, -0.5)]], 5, 2.0, 0.9, 0.01, 10, 0.5]),
    ("sim_anneal", [[[(1, 0.5)]], HUGE, 2.0, 0.9, 0.01, 10, 2.0]),
    *(
        ("sim_anneal", [[[(1, 0.5)]], 5, *schedule, 0.5])
        for schedule in (
            (0.0, 0.9, 0.01, 10),
            (2.0, 1.0, 0.01, 10),
            (2.0, 0.0, 0.01, 10),
            (2.0, 0.9, -0.01, 10),
            (2.0, 0.9, 0.0, 10),
            (2.0, 0.9, 0.01, (1 << 31) - 1),
            (2.0, 0.9, 0.01, 1 << 70),
        )
    ),
    *(("had_paley", [f(n, n, dtype=torch.float16)]) for n in (0, 1, 2, 6, 16)),
    ("had_paley", [f(8, 16, dtype=torch.float16)[:, ::2]]),
    *(("had_paley2", [f(n, n, dtype=torch.float16)]) for n in (0, 1, 8, 20)),
    ("stloader_read", ["/no/such/file", 0, 8, f(2, 2)]),
    ("stloader_read", [str(ROOT), 0, 8, f(2, 2)]),
    ("stloader_read", [__file__, 1 << 40, 8, f(2, 2)]),
    ("stloader_read", [__file__, HUGE - 1, 8, f(2, 2)]),
    ("stloader_read", [__file__, HUGE, 8, f(2, 2)]),
    ("stloader_read", [__file__, 0, 17, f(2, 2)]),
    ("stloader_read", [__file__, 0, HUGE, f(2, 2)]),
]


@pytest.mark.parametrize("at", range(len(REFUSED)), ids=lambda i: f"{REFUSED[i][0]}-{i}")
def test_calls_that_fit_nothing_are_refused(at: int) -> None:
    name, arguments = REFUSED[at]
    with pytest.raises((RuntimeError, TypeError)):
        getattr(ext, name)(*arguments)


def test_sizes_of_zero() -> None:
    """Nothing to do is done."""
    none = torch.zeros
    ext.pack_rows_4(shorts(0, 16), words(0, 2))
    ext.pack_columns(shorts(0, 4), words(0, 4), 4)
    ext.pack_columns(shorts(32, 0), words(4, 0), 4)
    ext.quantize(none(0, 8), none(0, 8), f(8), shorts(0, 8), *GRID)
    ext.quantize_range_inplace(f(4, 8), f(8), ABSENT, *GRID, 2, 2)
    sums = f(2, 128)
    ext.quantize_err(none(0, 8), sums, f(8), *GRID, 3.5, 0.7, 1.2, 1)
    ext.quantize_err(none(4, 0), sums, none(0), *GRID, 3.5, 0.7, 1.2, 1)
    assert bool((sums == 1).all())
    weights = f(4, 8)
    ext.quantize_range(f(4, 8), f(8), ABSENT, *GRID, torch.zeros(4, 4), weights, f(4, 8), 4, 4)
    assert bool((weights == 1).all())
    assert anneal([[(1, 0.5), (1, 0.25)]], 0)[3] == 1
    assert ext.sim_anneal([[(1, 0.5), (0, 0.25)]], 1, 1.0, 0.5, 2.0, -3, 2.0)[1] == [0]
    ext.stloader_read(__file__, 0, 0, torch.empty(0))
