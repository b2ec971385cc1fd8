"""The wheel matrix: counted again from the rules as they were written down, and what the command prints."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from typer.testing import CliRunner

import nybble
from nybble.build import cuda, matrix, sources
from nybble.cli import main

UBUNTU, WINDOWS = "ubuntu-22.04", "windows-2022"


def cuda_wheels(system: str, first_with_313: tuple[int, int]) -> set[tuple[str, ...]]:
    """The rules in other words than matrix.py has them: for each torch, the toolkits that go with it."""
    toolkits = {
        (2, 3, 1): ["11.8.0", "12.1.0"],
        (2, 4, 0): ["11.8.0", "12.1.0"],
        (2, 5, 0): ["11.8.0", "12.1.0"],
        (2, 6, 0): ["11.8.0", "12.4.0"],
        (2, 7, 0): ["12.8.1"],
        (2, 8, 0): ["12.8.1"],
        (2, 9, 0): ["12.8.1"],
    }
    found = set()
    for torch, cudas in toolkits.items():
        pythons = ["3.10", "3.11", "3.12"] + (["3.13"] if torch[:2] >= first_with_313 else [])
        release = ".".join(map(str, torch))
        found |= {
            ("wheel", system, python, release, cuda)
            for python, cuda in itertools.product(pythons, cudas)
        }
    return found


def expected() -> set[tuple[str, ...]]:
    ubuntu, windows = cuda_wheels(UBUNTU, (2, 5)), cuda_wheels(WINDOWS, (2, 6))
    assert (len(ubuntu), len(windows)) == (40, 38)
    rocm = {("wheel", UBUNTU, python, "2.2.2", "rocm5.6") for python in ("3.10", "3.11")}
    for python, (torch, toolkit) in itertools.product(
        ("3.10", "3.11", "3.12"), (("2.3.1", "rocm6.0"), ("2.4.0", "rocm6.1"))
    ):
        rocm.add(("wheel", UBUNTU, python, torch, toolkit))
    assert len(rocm) == 8
    single = {("wheel", UBUNTU, "3.10", "2.2.2", "12.1.0"), ("sdist", UBUNTU, "3.11", "2.3.1", "")}
    return ubuntu | windows | rocm | single


def test_the_88() -> None:
    rows = matrix.classic()
    told = [
        (row.kind, row.system, row.python, row.torch, f"rocm{row.rocm}" if row.rocm else row.cuda)
        for row in rows
    ]
    assert len(told) == len(set(told)) == 88
    assert set(told) == expected()


def test_architectures_of_the_88() -> None:
    for row in matrix.classic():
        if row.cuda == "12.8.1":
            assert " ".join(row.archs) == "6.0 6.1 7.0 7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
        elif row.cuda:
            assert " ".join(row.archs) == "6.0 6.1 7.0 7.5 8.0 8.6 8.9 9.0+PTX"
        else:
            assert not row.archs


def test_each_row_says_why_it_cannot_be_built() -> None:
    for row in matrix.classic():
        assert ("against torch 2.10 or later" in row.blocked) == (row.kind == "wheel")
        assert ("there is no HIP build" in row.blocked) == bool(row.rocm)
        assert ("need CUDA 12.0 or later" in row.blocked) == (row.cuda == "11.8.0")
        # What serves instead is a wheel we ship, for the same system.
        assert bool(row.served) == bool(row.blocked)
        if row.served:
            shipped = {r.platform for r in matrix.current() if r.system == row.system}
            assert row.served.split(",")[0] in shipped
            assert ("CPU kernels only, not run with ROCm" in row.served) == bool(row.rocm)


def test_what_the_88_leave_out() -> None:
    """Every combination of a toolkit's torches, the Pythons and the systems is a row, or a rule says why not."""
    rows = {(r.system, r.python, r.torch, r.cuda) for r in matrix.classic()}
    for kit in matrix.TOOLKITS:
        for system, python, torch in itertools.product(
            (UBUNTU, WINDOWS), matrix.PYTHONS, kit.torches
        ):
            rule = matrix.excluded(system, python, torch)
            assert ((system, python, torch, kit.cuda) in rows) == (rule is None)
    assert all(rule.reason for rule in matrix.EXCLUDED)


def test_what_we_ship() -> None:
    rows = matrix.current()
    assert [row.kind for row in rows].count("sdist") == 1
    wheels = [row for row in rows if row.kind == "wheel"]
    platforms = {"manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "win_amd64"}
    assert {row.platform for row in wheels} == platforms
    # PyPI takes no local version, and one file for each platform tag.
    public = [row.platform for row in wheels if not row.local]
    assert len(public) == len(set(public)) == len(platforms)
    assert all(row.archs[-1] == "12.0+PTX" for row in wheels)
    # nvcc 13 makes no code for Pascal and Volta.
    assert {row.archs[0] for row in wheels if row.cuda.startswith("12")} == {"6.0"}
    assert {row.archs[0] for row in wheels if row.cuda.startswith("13")} == {"7.5"}


def test_a_wheel_has_code_for_every_gpu_of_the_88() -> None:
    """The wheel that a row is told to take runs on each of the row's architectures."""
    line = next(row for row in matrix.current() if row.kind == "wheel" and not row.local)
    made = [name for arch in cuda.parse_arch_list(" ".join(line.archs)) for name in arch.cmake()]
    for row in matrix.classic():
        for arch in row.archs:
            number = round(float(arch.removesuffix("+PTX")) * 10)
            assert cuda.serves(made, number), arch


@pytest.mark.parametrize("rows", [matrix.current(), matrix.classic()], ids=["current", "classic"])
def test_names_are_unique(rows: list[matrix.Row]) -> None:
    names = [row.name for row in rows]
    assert len(names) == len(set(names))


def test_local_versions() -> None:
    local = {row.local for row in matrix.classic()}
    assert {"+cu128-torch2.9.0", "+cu118-torch2.3.1", "+rocm6.1-torch2.4.0", ""} < local


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["build", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_plan_as_json() -> None:
    record = json.loads(run("--plan", "--classic", "--json"))
    assert record["version"] == nybble.__version__
    assert len(record["rows"]) == 88 and record["excluded"]
    assert len(json.loads(run("--plan", "--json"))["rows"]) == len(matrix.current())


def test_plan_as_a_table() -> None:
    shown = run("--plan", "--classic")
    assert "88 artefacts" in shown
    assert len(re.findall(r"^(?:wheel|sdist) .*(?:no \([a-z]\)|yes)", shown, re.MULTILINE)) == 88
    assert "(a) the library builds against torch 2.10 or later only" in shown
    shown = run("--plan")
    assert "manylinux_2_28_aarch64-cu128" in shown and "525 or later" in shown


def test_plan_options_alone_are_refused() -> None:
    result = CliRunner().invoke(main, ["build", "--classic"])
    assert result.exit_code == 2 and "--plan" in result.output


def test_version_is_written_once_and_can_be_read_without_importing() -> None:
    text = (sources.PACKAGE / "__init__.py").read_text()
    found = re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)
    assert found == [nybble.__version__]
