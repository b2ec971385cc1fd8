"""The benchmarks on tiny shapes: the arithmetic of the figures, and what a report holds."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from nybble.benchmarks import bandwidth, baselines, decode, ops
from nybble.benchmarks.pairs import pairs
from nybble.benchmarks.random_matrix import random_matrix
from nybble.benchmarks.report import Report, Section, Times, measure
from nybble.cli import main
from nybble.errors import SettingError
from nybble.ops._schema import SCHEMAS
from nybble.ops.packed import dequantize

KEYS = {"benchmark", "command", "date", "device", "versions", "load_average", "settings", "memory"}

NAMES = [*(f"nybble, act_bits {bits}" for bits in (16, 8, 32)), "torch bfloat16"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bandwidth, "CEILING_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidth, "SECONDS", 0.0)


def test_random_matrix_keeps_variance():
    matrix = random_matrix(256, 48, 4, 128)
    assert matrix.weight.numel() == 48 * 256 // 2 and matrix.scales.shape == (3, 2, 16)
    y = torch.randn(64, 256) @ dequantize(matrix)
    assert 0.7 < float(y.std()) < 1.5


@pytest.mark.parametrize(("bits", "group"), [(7, 128), (4, 48), (4, 0)])
def test_random_matrix_refuses(bits, group):
    with pytest.raises(SettingError, match="expected"):
        random_matrix(64, 16, bits, group)


def test_bytes_of_a_token():
    model = decode.random_model("tiny")
    layer = 128 * (128 + 2 * 64) + 128 * 128 + 128 * 512 + 256 * 128  # weights of one
    scales = 2 * (256 + 128 + 512 + 2 * 128) * 2 + 512 * 2
    assert model.nbytes == 2 * layer // 2 + 128 * 512 * 6 // 8 + scales
    assert decode.token_bytes(model, 10) - model.nbytes == 10 * 2 * 2 * 2 * 32 * 4


def test_decode_report(tmp_path):
    report = decode.run("tiny", threads=1, tokens=2, prefill=8)
    record = json.loads(json.dumps(report.record()))
    assert record.keys() == KEYS | {"decode", "prefill", "notes"}
    assert record["settings"]["head_bits"] == 6 and record["settings"]["threads"] == 1
    (row,) = record["decode"]
    best = max(way["GB_s"] for way in record["memory"])
    assert row["tokens_s"] == pytest.approx(1e3 / row["ms"])
    assert row["share_of_ceiling"] == pytest.approx(row["MB_read"] / row["ms"] / best)
    assert {"cpu", "cores", "ops", "cpu_isa"} <= record["device"].keys()
    assert {"python", "torch"} <= record["versions"].keys()


def test_ops_report(monkeypatch):
    monkeypatch.setattr(baselines, "missing", lambda: "onnxruntime")
    report = ops.run(size=128, seconds=0.0, rotated=1, qmatmul_rows=(1, 3), op_rows=(2,))
    record = report.record()
    assert record.keys() == KEYS | {"qmatmul", "ops", "notes"}
    assert [(row["by"], row["M"]) for row in record["qmatmul"]] == [
        (by, M) for M in (1, 3) for by in NAMES
    ]
    assert len(record["ops"]) == len(SCHEMAS) - 1 and all(
        row["times_faster"] > 0 for row in record["ops"]
    )
    assert "onnxruntime" in record["notes"][-1]


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-4), (torch.float16, 2**-7)],  # PyTorch rounds to half in between too
)
def test_both_sides_of_a_pair_compute_the_same(dtype, bound):
    for name, mine, theirs in pairs(3, dtype=dtype):
        a, b = mine(), theirs()
        op = name.split()[0]
        if op in ("sample", "sample_chain") or op.endswith("_"):
            continue  # drawn, or written in place
        b = b.transpose(1, 2) if name == "attention" else b
        # Numbers of few digits often lie half way between two codes.
        atol = 1 if op.endswith("_int8") and dtype == torch.float16 else bound
        torch.testing.assert_close(
            a, b, atol=atol, rtol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_onnxruntime_baseline():
    if baselines.missing():
        pytest.skip(f"not installed: {baselines.missing()}")
    ((M, times, nbytes),) = baselines.matmul_nbits(128, 128, 1, (2,), 1, 0.0)
    assert (M, nbytes) == (2, 128 * 64 + 128 * 4) and times.fastest <= times.median


def test_measure_counts_a_call():
    calls = []
    times = measure(lambda: calls.append(1), 0.0)
    assert len(calls) > 3 and 0 < times.fastest <= times.median


def test_command_writes_json(tmp_path):
    out = tmp_path / "new" / "decode.json"
    arguments = ["bench", "decode", "--shape", "tiny", "--tokens", "1", "--prefill", "4"]
    result = CliRunner().invoke(main, [*arguments, "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(out.read_text())
    result = CliRunner().invoke(main, arguments)
    assert "Prefill" in result.stdout and "load average" in result.stdout


def test_command_says_what_is_wrong(tmp_path):
    result = CliRunner().invoke(main, ["bench", "decode", "--shape", "huge"])
    assert result.exit_code == 1 and "shape is 'huge', expected one of" in result.stderr
    result = CliRunner().invoke(main, ["bench", "decode", "--shape", "tiny", "--prefill", "2000"])
    assert result.exit_code == 1 and "ask for fewer" in result.stderr


def test_table_prints_every_cell(capsys):
    rows = [{"by": "x", "ms": 1234.5, "none": None}]
    Report("ops", {}, 0.5, [Section("s", "Title", rows)], ["a note"]).print()
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("Title", "1,234", "-", "a note"))
    assert Times.of([2.0, 1.0]).median == 1.5


def test_every_op_stands_beside_pytorch():
    """qmatmul has a table of its own."""
    assert {name.split()[0] for name, _, _ in pairs(1)} == SCHEMAS.keys() - {"qmatmul"}
