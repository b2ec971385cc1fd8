"""What ``nybble doctor`` calls missing, on machines that are only pretended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nybble.build import cuda, toolchain
from nybble.cli import doctor

WHEEL = {"cuda": "12.8", "cuda_archs": ["80-real", "90a-real", "120-virtual"]}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets up a machine with nothing to compile with and returns what doctor finds missing there, with the fixes."""

    def missing(
        *, driver: str = "", arch: str = "9.0", torch_cuda: str | None = None, wheel: bool = True
    ) -> dict[str, str]:
        def output_of(*command: str | Path) -> str | None:
            if "nvidia-smi" not in str(command[0]) or not driver:
                return None
            return driver if "driver_version" in str(command[1]) else f"Some GPU, {arch}"

        library = {
            "path": "libnybble.so" if wheel else None,
            "origin": "package" if wheel else "reference",
            "reason": "",
            "interface": "",
            "cpu_isa": None,
            "info": WHEEL if wheel else {},
            "ops": {},
        }
        monkeypatch.setattr(toolchain, "output_of", output_of)
        monkeypatch.setattr(toolchain, "find_compiler", lambda: None)
        monkeypatch.setattr(toolchain, "find_program", lambda name: None)
        monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
        monkeypatch.setattr(doctor, "examine_library", lambda: library)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        return {fix["missing"]: fix["fix"] for fix in doctor.examine()["fixes"]}

    return missing


def test_a_wheel_needs_no_build_tools(machine: Any) -> None:
    assert machine() == {}
    assert machine(driver="580.65", torch_cuda="13.0") == {}


def test_without_a_library_the_build_tools_are_missing(machine: Any) -> None:
    assert {"a C++ compiler", "cmake", "ninja"} <= set(machine(wheel=False))


def test_a_gpu_without_code_needs_a_build(machine: Any) -> None:
    found = machine(driver="580.65", arch="7.0", torch_cuda="12.8")
    assert "TORCH_CUDA_ARCH_LIST=7.0" in found["code for Some GPU (7.0)"]
    assert "a C++ compiler" in found and "nvcc" in found


@pytest.mark.parametrize(
    ("driver", "command"),
    [("580.65", "pip install --force-reinstall torch"), ("550.54", "whl/cu128")],
)
def test_a_torch_without_cuda(
    machine: Any, monkeypatch: pytest.MonkeyPatch, driver: str, command: str
) -> None:
    """PyPI's torch is made with CUDA 13, which a driver before 580 cannot run."""
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    found = machine(driver=driver)
    assert set(found) == {"a torch for the GPU"}
    assert found["a torch for the GPU"].endswith(command)


def test_torch_for_windows_comes_from_its_own_index(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "win32")
    assert machine(driver="580.65")["a torch for the GPU"].endswith("whl/cu130")


def test_a_torch_for_rocm(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    found = machine()
    assert set(found) == {"kernels for ROCm"}
    assert "GPU tensors use the PyTorch reference" in found["kernels for ROCm"]


def test_a_driver_too_old_for_torch(machine: Any) -> None:
    found = machine(driver="550.54", torch_cuda="13.0")
    assert set(found) == {"a torch that fits the driver"}
    text = found["a torch that fits the driver"]
    assert "driver 550.54 is too old for torch's CUDA 13.0, which needs 580 or later" in text
    assert "whl/cu128" in text


def test_a_driver_too_old_for_the_library(machine: Any) -> None:
    found = machine(driver="470.82", torch_cuda="11.8")
    assert "too old for code made with CUDA 12.8" in found["a driver that is new enough"]
