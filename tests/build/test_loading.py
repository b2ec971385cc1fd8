"""Which library serves the ops, and what is told when none does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nybble.build import compile as building
from nybble.build import sources, toolchain
from nybble.errors import BuildError, SettingError
from nybble.ops import _native

ROOT = Path(__file__).resolve().parents[2]
USE_AN_OP = """\
import torch
from nybble import ops
from nybble.ops import _native
y = ops.rms_norm(torch.ones(1, 4), torch.ones(4), 0.0)
assert y.tolist() == [[1.0] * 4]
print(_native.ensure_loaded().origin)
"""


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python anew: what a process has loaded stays loaded."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NYBBLE_LIBRARY", "NYBBLE_CPU_ISA")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=kept | variables,
        timeout=120,
        cwd=ROOT,
    )


def test_forced_reference() -> None:
    done = python("-W", "error", "-c", USE_AN_OP, NYBBLE_FORCE_REFERENCE="1")
    assert (done.stdout.strip(), done.returncode) == ("reference", 0), done.stderr


def test_forced_c_interface() -> None:
    path = _native.ensure_loaded().path
    if path is None:
        pytest.skip("no native library")
    script = USE_AN_OP + "print(_native.ensure_loaded().interface)\n"
    done = python("-W", "error", "-c", script, NYBBLE_C_INTERFACE="1", NYBBLE_LIBRARY=str(path))
    assert done.stdout.split("\n")[1] == "C interface", done.stderr


@pytest.mark.skipif(
    toolchain.version_tuple(torch.__version__) < toolchain.MINIMUM_TORCH,
    reason="nothing is built beside a torch below 2.10",
)
def test_nocompile_with_an_empty_cache(tmp_path: Path) -> None:
    done = python(
        "-c",
        USE_AN_OP,
        NYBBLE_NOCOMPILE="1",
        NYBBLE_CACHE_DIR=str(tmp_path / "cache"),
        TMPDIR=str(tmp_path),
    )
    assert (done.stdout.strip(), done.returncode) == ("reference", 0), done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "NYBBLE_NOCOMPILE is set" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_unknown_cpu_isa() -> None:
    done = python("-c", USE_AN_OP, NYBBLE_CPU_ISA="sse9", NYBBLE_FORCE_REFERENCE="1")
    assert done.returncode == 1
    assert "SettingError: NYBBLE_CPU_ISA=sse9 is not understood" in done.stderr


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, a cache and a builder that only say which of them was asked."""
    for name in ("NYBBLE_FORCE_REFERENCE", "NYBBLE_LIBRARY", "NYBBLE_NOCOMPILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NYBBLE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path / "csrc")
    key = building.Plan(tmp_path, "abc", None, (), "abc-key")  # type: ignore[arg-type]
    monkeypatch.setattr(building, "plan", lambda: key)
    monkeypatch.setattr(building, "build", lambda plan, progress: tmp_path / "built")
    monkeypatch.setattr(
        _native,
        "_load",
        lambda path, origin, reason, info, reasons: _native.State(path, origin, reason, info),
    )
    return tmp_path


def put_library(folder: Path) -> Path:
    folder.mkdir(parents=True)
    path = folder / sources.library_name()
    path.write_bytes(sources.MARK + b'"hash":"abc"}\0')
    return path


def test_order(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _native._choose().origin == "built now"
    put_library(world / "cache/native/abc-key")
    assert _native._choose().origin == "cache"
    packaged = put_library(world / "package/_lib")
    assert _native._choose().origin == "package"
    packaged.write_bytes(b"half")
    assert "is damaged" in _native._choose().reason
    monkeypatch.setenv("NYBBLE_LIBRARY", str(world / "chosen"))
    assert _native._choose().origin == "NYBBLE_LIBRARY"
    monkeypatch.setenv("NYBBLE_FORCE_REFERENCE", "1")
    assert _native._choose().origin == "reference"


def test_edited_sources_pass_over_the_packaged_library(world: Path) -> None:
    put_library(world / "package/_lib")
    (world / "csrc").mkdir()
    (world / "csrc/CMakeLists.txt").write_text("changed")
    state = _native._choose()
    assert state.origin == "built now"
    assert "older than the sources" in state.reason


def test_a_failed_build_warns_and_goes_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(plan: object, progress: object) -> Path:
        raise BuildError("no compiler")

    monkeypatch.setattr(building, "build", build)
    with pytest.warns(RuntimeWarning, match="slow PyTorch reference: no compiler"):
        assert _native._choose().origin == "reference"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.c").write_text("void torch_gone(void); void f(void) { torch_gone(); }\n")
    path = tmp_path / "liba.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, tmp_path / "a.c"], check=True)
    monkeypatch.delenv("NYBBLE_FORCE_REFERENCE", raising=False)
    monkeypatch.setenv("NYBBLE_LIBRARY", str(path))
    with pytest.raises(SettingError, match="torch_gone is missing there"):
        _native._choose()


def test_abi_of_the_library() -> None:
    path = _native.ensure_loaded().path
    if path is None or sys.platform != "linux" or shutil.which("readelf") is None:
        pytest.skip("no native library, or no readelf to look at it")
    done = python("tools/check_abi.py", str(path))
    assert done.returncode == 0, done.stderr


def test_doctor_json() -> None:
    done = python("-m", "nybble", "doctor", "--json", NYBBLE_NOCOMPILE="1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["torch"]["version"]
    assert report["library"]["ops"]["qmatmul"]["CPU"] in ("native", "reference")
    assert all(entry["missing"] and entry["fix"] for entry in report["fixes"])


def test_doctor_env() -> None:
    done = python("-m", "nybble", "doctor", "--env", "--json", NYBBLE_VERBOSE="1")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["NYBBLE_VERBOSE"]["set"] == "1"
    assert rows["NYBBLE_NOCOMPILE"]["aliases"] == ["EXLLAMA_NOCOMPILE"]
    assert python("-m", "nybble", "doctor", "--env").returncode == 0


@pytest.mark.parametrize("c_interface", ["0", "1"])
def test_a_torch_without_cuda_gets_no_cuda_kernels(c_interface: str) -> None:
    """A torch for ROCm calls its device CUDA too: a wheel's CUDA kernels were registered for its tensors."""
    state = _native.ensure_loaded()
    if torch.version.cuda or not state.info.get("cuda_archs"):
        pytest.skip("needs a library with a CUDA part and a torch without")
    script = (
        "from nybble.ops import _native; _native.ensure_loaded(); "
        "print(_native.native_devices('rms_norm'))"
    )
    done = python("-c", script, NYBBLE_LIBRARY=str(state.path), NYBBLE_C_INTERFACE=c_interface)
    assert done.stdout.strip() == "['CPU']", done.stderr
