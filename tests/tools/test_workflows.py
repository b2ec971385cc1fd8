"""The checked-in workflows: as the plan says, pinned, and no more allowed than they need."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nybble.build import matrix
from tools import gen_workflows

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
ROOT = Path(__file__).resolve().parents[2]
FILES = gen_workflows.render()


def parsed(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(FILES[name])
    return data


def steps(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Every step of a workflow with the name of its job."""
    return [(job, step) for job, facts in parsed(name)["jobs"].items() for step in facts["steps"]]


def test_examples() -> None:
    assert doctest.testmod(gen_workflows).failed == 0


def test_the_files_are_as_generated() -> None:
    """Where this fails: python tools/gen_workflows.py"""
    folder = ROOT / ".github" / "workflows"
    assert {path.name: path.read_text() for path in folder.iterdir()} == FILES


def test_the_writer_means_what_it_is_given() -> None:
    """YAML reads 3.10 as a number and on as a truth where they are not quoted."""
    value = {
        "python": "3.10",
        "on it": [
            "3.10",
            "on",
            "a: b",
            "#",
            "x # y",
            "- z",
            "",
            "${{ a.b == '1' }}",
            "dist/*",
            "y\\z",
        ],
        "script": 'a\n  b: "c"\n\nd',
        "empty": {},
        "nested": [{"a": {"b": [1, True, None]}}, {"c": "x:"}],
    }
    read = yaml.safe_load(gen_workflows.yaml(value))
    value["script"] += "\n"
    assert read == value


@pytest.mark.parametrize("name", FILES)
def test_every_action_is_pinned_to_a_commit(name: str) -> None:
    used = re.findall(r"uses: (.*)", FILES[name])
    assert used
    for line in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize("name", FILES)
def test_reading_is_all_that_is_allowed_by_default(name: str) -> None:
    assert parsed(name)["permissions"] == {"contents": "read"}
    for job, facts in parsed(name)["jobs"].items():
        if "permissions" in facts:
            assert job in ("github", "pypi") and facts["if"] == "inputs.release == '1'"


def test_the_release_builds_every_row_of_the_plan() -> None:
    jobs = parsed("release.yml")["jobs"]
    built = [
        entry["name"]
        for job in ("linux", "windows")
        for entry in jobs[job]["strategy"]["matrix"]["include"]
    ]
    assert sorted([*built, "sdist"]) == sorted(row.name for row in matrix.current())
    assert all(jobs[job]["strategy"]["fail-fast"] is False for job in ("linux", "windows"))
    inputs = parsed("release.yml")[True]["workflow_dispatch"]["inputs"]  # YAML 1.1: on is true
    assert inputs["release"]["options"] == ["0", "1"] and inputs["release"]["default"] == "0"
    assert jobs["github"]["permissions"]["contents"] == "write"
    assert jobs["pypi"]["permissions"] == {"id-token": "write"}
    uploads = [
        step["run"]
        for job, step in steps("release.yml")
        if "gh release upload" in step.get("run", "")
    ]
    assert len(uploads) == 1 and "--clobber" in uploads[0]


def test_the_version_is_found_by_the_workflow(tmp_path: Path) -> None:
    if shutil.which("sed") is None or shutil.which("bash") is None:
        pytest.skip("the step is for a POSIX shell")
    output = tmp_path / "output"
    done = subprocess.run(
        ["bash", "-e", "-c", gen_workflows.READ_VERSION["run"]],
        cwd=ROOT,
        env={"GITHUB_OUTPUT": str(output), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    import nybble

    assert output.read_text() == f"version={nybble.__version__}\n"
    assert done.stdout == f"nybble {nybble.__version__}\n"


def test_every_row_with_cuda_is_an_install_target() -> None:
    found = parsed("install-matrix.yml")["jobs"]["install"]["strategy"]["matrix"]["include"]
    told = [(t["system"], t["python"], t["torch"], t["index"]) for t in found]
    assert len(told) == len(set(told)) <= 256  # what GitHub takes
    rows = [row for row in matrix.classic() if row.cuda]
    assert len(rows) == 79
    for row in rows:
        assert (row.system, row.python, row.torch, matrix.toolkit_tag(row.cuda)) in told


def test_every_gpu_of_the_plan_is_compiled_for_at_night() -> None:
    """nvcc 13 knows neither Pascal nor Volta, so one toolkit does not do."""
    jobs = parsed("nightly.yml")["jobs"]
    for job, target, toolkit in (
        ("architectures", "cuda-all", "13-0"),
        ("older", "cuda-older", "12-8"),
    ):
        scripts = " ".join(step.get("run", "") for step in jobs[job]["steps"])
        assert f"make {target}" in scripts and f"cuda-minimal-build-{toolkit}" in scripts


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = [
        word
        for name in FILES
        for _, step in steps(name)
        for line in re.findall(r"^make (.*?) PYTHON=", step.get("run", ""), re.MULTILINE)
        for word in line.split()
        if "=" not in word
    ]
    assert {"lint", "test", "fuzz", "asan", "cuda-check", "sanitize-gpu"} <= set(called) <= targets
