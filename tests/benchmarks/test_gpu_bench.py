"""The GPU benchmark's arithmetic, on any machine: targets, floors, parts, rows, panels. What needs a GPU is replaced."""

from __future__ import annotations

import doctest
import subprocess
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from nybble.benchmarks import gpu, gpu_cases, gpu_device, gpu_marlin, gpu_matmul, gpu_ops, gpu_plot
from nybble.benchmarks.gpu_cases import LARGE, SMALL, Weight, uniform
from nybble.benchmarks.gpu_ceiling import Ceiling
from nybble.benchmarks.random_matrix import Segment, block_table, random_mixture
from nybble.benchmarks.report import Report, Section
from nybble.cli import main
from nybble.errors import SettingError
from nybble.ops import _native
from nybble.ops.packed import dequantize

H200 = Ceiling({"read": 4550.0}, {"product": 780.0})
NOTHING: dict[str, float | None] = {
    "cublas": None,
    "int4pack": None,
    "marlin": None,
    "exllamav2": None,
    "parts": None,
    "invariant": None,
}
MODULES = ("cases", "ceiling", "device", "matmul", "ops", "plot", "timing")


@pytest.mark.parametrize("name", ["gpu", *(f"gpu_{x}" for x in MODULES), "random_matrix", "report"])
def test_examples(name: str) -> None:
    assert doctest.testmod(import_module(f"nybble.benchmarks.{name}")).failed == 0


def wanted(name: str, shape: tuple[int, int], M: int, **measured: float) -> float | None:
    """The target in microseconds."""
    (weight,) = [w for w in gpu_cases.weights() if (w.name, w.K, w.N) == (name, *shape)]
    target = gpu_cases.target(weight, M)
    assert target is not None
    seconds = target.seconds(measured)
    return None if seconds is None else round(seconds * 1e6, 3)


def test_targets() -> None:
    assert [wanted("4 bits", shape, 1) for shape in (*SMALL, *LARGE)] == [4.2, 10, 33, 33]
    for shape in LARGE:
        got = [wanted("4 bits", shape, M) for M in (2, 4, 8, 16, 32, 64, 128, 256)]
        assert got == [34, 35, 37, 40, 46, 60, 105, 195]
        for M in (1024, 4096):
            assert wanted("4 bits", shape, M, cublas=1e-3) == 1100
            assert wanted("4 bits", shape, M) is None
        for name in ("mixture", "mixture, permuted", "4 bits, permuted"):
            assert wanted(name, shape, 1, parts=20e-6) == 22
    assert [wanted(f"{bits} bits", LARGE[0], 1) for bits in (2, 3, 5, 6, 8)] == [19, 26, 42, 49, 65]


def test_attention_targets() -> None:
    wanted = gpu_cases.attention_target
    assert wanted(8, 32768, "plain", 240e-6) == pytest.approx(252e-6)
    assert (
        wanted(8, 32768, "q8", 238e-6) == wanted(8, 32768, "fp8", 238e-6) == pytest.approx(140e-6)
    )
    assert wanted(8, 4096, "q4", 37e-6) is None and wanted(8, 32768, "q8/q4", 240e-6) is None


def test_every_target_has_its_case() -> None:
    cases = {(w.name, w.K, w.N, M) for w in gpu_cases.weights() for M in gpu_cases.rows_of(w)}
    assert gpu_cases.TARGETS.keys() <= cases


def test_floor_of_the_largest_product() -> None:
    """26.6 microseconds at one row, weights and scales; activations add a little; at 4096 rows arithmetic is the limit."""
    nbytes = 8192 * 28672 // 2 + 64 * 28672 * 2
    weight = uniform(4, *LARGE[0])
    one = gpu_matmul.figures(weight, 1, nbytes, 33e-6, NOTHING, H200)
    assert one["floor_us"] == pytest.approx(26.6, abs=0.05) and one["met"] is True
    assert one["share_of_floor"] == pytest.approx(26.6 / 33, abs=0.01)
    many = gpu_matmul.figures(weight, 4096, nbytes, None, NOTHING | {"cublas": 3e-3}, H200)
    assert many["floor_us"] == pytest.approx(2 * 4096 * 8192 * 28672 / 780e6, rel=1e-6)
    assert many["target_us"] == pytest.approx(3300)
    assert many["us"] is many["met"] is many["times_cublas"] is None


def test_parts_wait_for_every_width() -> None:
    (mixed,) = [w for w in gpu_cases.weights() if (w.name, w.K) == ("mixture", 28672)]
    assert sum(mixed.share(bits) for bits in (3, 4, 8)) == pytest.approx(1)
    alone = {(3, 28672, 8192): 26e-6, (4, 28672, 8192): 33e-6}
    assert gpu_matmul.parts(mixed, alone) is None
    seconds = gpu_matmul.parts(mixed, alone | {(8, 28672, 8192): 65e-6})
    assert seconds is not None and 26e-6 < seconds < 33e-6


def test_a_mixture_is_a_sound_matrix() -> None:
    segments = gpu_cases.mixture(1536, gpu_cases.DOWN)
    matrix = random_mixture(1536, 40, segments, permuted=True, zeros=True)
    assert sum(s.rows for s in segments) == 1536 and len(block_table(segments)) == 48
    assert matrix.weight.numel() == 3 * 64 * int(matrix.blocks[:, 0].sum())
    assert matrix.perm is not None and sorted(matrix.perm.tolist()) == list(range(1536))
    dense = dequantize(matrix)
    assert dense.isfinite().all() and 0.7 < float((torch.randn(64, 1536) @ dense).std()) < 1.5


def test_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(SettingError, match="segments have 64 rows, expected 128"):
        random_mixture(128, 16, (Segment(4, 64, 32),))


def measured(monkeypatch: pytest.MonkeyPatch, ours: gpu_matmul.Seconds) -> Section:
    others = gpu_matmul.Baselines(dict.fromkeys(gpu_cases.ROWS, 1e-4), {1: 5e-5}, {1: 4e-5})
    monkeypatch.setattr(gpu_matmul, "measure_baselines", lambda K, N: others)
    mine = gpu_matmul.Ours(10**8, ours, {2: 4e-5} if ours else {})
    monkeypatch.setattr(gpu_matmul, "measure_ours", lambda weight: mine)
    monkeypatch.setattr(gpu_matmul, "measure_exllamav2", lambda weight: {1: 7e-5})
    return gpu_matmul.section(H200)


def test_why_marlin_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_marlin, "find_spec", lambda name: None)
    assert gpu_marlin.missing() == "Marlin is not measured: pip install vllm"
    library = tmp_path / "_C.abi3.so"
    library.write_bytes(b"no library")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(gpu_marlin, "find_spec", lambda name: found)
    assert "does not load: Could not load this library" in str(gpu_marlin.missing())
    assert list(gpu_marlin.marlin(128, 64, 128, [1])) == []


def test_section_has_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(monkeypatch, dict.fromkeys(gpu_cases.ROWS, 3e-5)).rows
    assert len(rows) == sum(len(gpu_cases.rows_of(w)) for w in gpu_cases.weights())
    found = {(row["weight"], row["K"], row["M"]): row for row in rows}
    assert found["4 bits", 8192, 1]["times_cublas"] == pytest.approx(100 / 30)
    assert found["4 bits", 8192, 1]["int4pack_us"] == pytest.approx(50)
    assert found["4 bits", 8192, 2]["int4pack_us"] is None
    assert found["4 bits", 8192, 1]["marlin_us"] == pytest.approx(40)
    assert found["4 bits", 8192, 1]["exllamav2_us"] == pytest.approx(70)
    assert found["4 bits", 8192, 2]["invariant_us"] == pytest.approx(40)
    assert found["mixture, permuted", 28672, 1]["target_us"] == pytest.approx(33)
    assert found["4 bits, zeros", 8192, 1]["target_us"] is None


def test_without_a_kernel_there_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(monkeypatch, {}).rows
    assert all(row["us"] is None and row["met"] is None and row["floor_us"] > 0 for row in rows)
    if "CUDA" not in _native.native_devices("qmatmul"):
        assert "qmatmul" in gpu_ops.missing()


def test_plot(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    section = measured(monkeypatch, dict.fromkeys(gpu_cases.ROWS, 3e-5))
    path = tmp_path / "plot.svg"
    gpu_plot.save(Report("gpu", {}, None, [section], [], {"gpu": "H200"}), path)
    assert "28672 × 8192" in path.read_text(encoding="utf-8") or path.stat().st_size > 10_000


def test_smi_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(subprocess, "run", fail)
    assert gpu_device.ask_smi("GPU-0", gpu_device.BUSY) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "expected cpu or cuda"),
        (["--plot", "x.svg"], "go with --device cuda"),
        (["--device", "cuda", "--only", "matmuls"], "part is 'matmuls', expected one of matmul"),
    ],
)
def test_command_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    result = CliRunner().invoke(main, ["bench", "ops", *arguments])
    assert result.exit_code == 1 and message in result.stderr


def test_no_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="sees no CUDA GPU"):
        gpu.run()


def test_weight_share() -> None:
    weight = Weight("", 128, 16, (Segment(8, 32, 32), Segment(4, 96, 32)))
    assert (weight.share(8), weight.share(4), weight.share(2)) == (0.25, 0.75, 0.0)
