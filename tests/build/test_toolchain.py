"""Discovery and refusal: each thing missing gives one sentence with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble import env
from nybble.build import compile as building
from nybble.build import cuda, msvc, sources, toolchain
from nybble.errors import BuildError, SettingError

CPU_TORCH = toolchain.Torch(Path("torch"), "2.13.0", None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9.0", ["90-real"]),
        ("9.0a", ["90a-real"]),
        ("8.0;8.6+PTX", ["80-real", "86-real", "86-virtual"]),
        ("8.0 8.6", ["80-real", "86-real"]),
        ("Hopper", ["90-real"]),
        ("Turing Ada", ["75-real", "89-real"]),
    ],
)
def test_arch_list(text: str, expected: list[str]) -> None:
    assert [name for arch in cuda.parse_arch_list(text) for name in arch.cmake()] == expected


@pytest.mark.parametrize("text", ["9", "sm_90", "Fermi", "9.0+FOO"])
def test_arch_list_refuses(text: str) -> None:
    with pytest.raises(SettingError, match="is not understood"):
        cuda.parse_arch_list(text)


def test_beside_a_torch_for_rocm_the_cpu_part_is_built() -> None:
    """The build failed, and the CPU ran on the reference too. Asked for, kernels for its GPU are refused."""
    torch = toolchain.Torch(Path("torch"), "2.13.0", None, "6.4")
    assert cuda.cmake_options(torch, "auto") == ["-DNYBBLE_CUDA=OFF"]
    with pytest.raises(BuildError, match="ROCm 6.4"):
        cuda.cmake_options(torch, "on")


def fake_nvcc(folder: Path, version: str) -> Path:
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "release '
        + version
        + ', V"\n[ "$1" = --list-gpu-arch ] && printf "compute_80\\ncompute_90\\n"\nexit 0\n'
    )
    path.chmod(0o755)
    return path


def test_old_cuda_is_refused(tmp_path: Path) -> None:
    """CUDA 11.8 has no tensor maps, and another cudaGetDriverEntryPoint."""
    with pytest.raises(BuildError, match="CUDA 11.8 .* is too old: install CUDA 12.0 or later"):
        cuda.check_nvcc(fake_nvcc(tmp_path, "11.8"), CPU_TORCH)


def test_other_cuda_than_torch_is_refused(tmp_path: Path) -> None:
    torch = toolchain.Torch(Path("torch"), "2.13.0", "13.0", None)
    with pytest.raises(BuildError, match="made with CUDA 13.0"):
        cuda.check_nvcc(fake_nvcc(tmp_path, "12.8"), torch)


def test_unknown_arch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0")
    with pytest.raises(
        BuildError, match=r"cannot build for compute capability 7.0; it knows 8.0, 9.0"
    ):
        cuda.choose_archs(fake_nvcc(tmp_path, "13.0"))


@pytest.mark.parametrize("year", ["2017", "2019", "2022"])
@pytest.mark.parametrize("edition", ["BuildTools", "Community", "Professional", "Enterprise"])
def test_msvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: str, edition: str) -> None:
    for version in ("14.9.1", "14.38.2"):
        cl = tmp_path / "Microsoft Visual Studio" / year / edition / "VC/Tools/MSVC" / version
        (cl / "bin/Hostx64/x64").mkdir(parents=True)
        (cl / "bin/Hostx64/x64/cl.exe").touch()
    for name in ("ProgramW6432", "ProgramFiles"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ProgramFiles(x86)", str(tmp_path))
    found = msvc.find_cl()
    assert found is not None
    assert "14.38.2" in found.parts
    assert edition in found.parts


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_compiler", lambda: None)
    monkeypatch.setattr(toolchain, "find_program", lambda name: None)
    monkeypatch.setattr(toolchain, "find_torch", lambda: CPU_TORCH)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler.*pip install cmake ninja"):
        toolchain.find_tools()


def test_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.1'\ncuda = None\n")
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda kind: str(tmp_path))
    with pytest.raises(BuildError, match="2.9.1 is installed: take a wheel of nybble"):
        toolchain.find_torch()


def test_half_a_file_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_CACHE_DIR", str(tmp_path))
    path = tmp_path / "native" / "abc-key" / sources.library_name()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF" + sources.MARK)
    assert building.cached("abc-key") is None
    path.write_bytes(b"\x7fELF" + sources.MARK + b'"hash":"abc"}\0')
    assert building.cached("abc-key") == path


def test_full_disk_is_told(tmp_path: Path) -> None:
    assert "disk is full" in building.explain_os_error(OSError(28, "No space"), tmp_path)


@pytest.mark.parametrize(("name", "value"), [("NYBBLE_CPU_ISA", "sse9"), ("NYBBLE_ACT_BITS", "7")])
def test_bad_settings(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="expected one of"):
        env.check()


def test_aliases_count_by_presence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXLLAMA_NOCOMPILE", "")
    assert env.flag("NYBBLE_NOCOMPILE")
