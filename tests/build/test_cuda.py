"""The CUDA part's guards: what a build refuses, and what the tools read from it. nvcc is needed, a GPU is not."""

from __future__ import annotations

import doctest
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from nybble.build import cuda, sources, toolchain

ROOT = Path(__file__).resolve().parents[2]
OLD_TORCH = toolchain.version_tuple(torch.__version__) < toolchain.MINIMUM_TORCH
# 160 values that live across a barrier, in 128 registers.
SPILLS = """\
__global__ void __launch_bounds__(256, 2) spills(float* p, int n) {
  float a[160];
#pragma unroll
  for (int i = 0; i < 160; i++) a[i] = p[i * threadIdx.x];
  for (int k = 0; k < n; k++) {
#pragma unroll
    for (int i = 0; i < 160; i++) a[i] = a[i] * a[(i + 7) % 160] + p[k * i];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 160; i++) p[i * threadIdx.x] = a[i];
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.skipif(OLD_TORCH, reason="nothing is built beside a torch below 2.10")
def test_a_hot_unit_must_not_spill(tmp_path: Path) -> None:
    tree, folder = tmp_path / "csrc", tmp_path / "build"
    shutil.copytree(sources.CHECKOUT / "cmake", tree / "cmake")
    shutil.copy(sources.CHECKOUT / "CMakeLists.txt", tree)
    for empty in ("cpu/none.cpp", "binding/none.cpp", "binding/check.h"):
        (tree / empty).parent.mkdir(exist_ok=True)
        (tree / empty).touch()
    (tree / "cuda").mkdir()
    (tree / "cuda" / "cold.cu").write_text(SPILLS)
    (tree / "cuda" / "hot.cu").write_text("// Hot: every token waits for it.\n" + SPILLS)
    tools = toolchain.find_tools()
    subprocess.run(
        [
            *(tools.cmake, "-S", tree, "-B", folder, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tools.ninja}",
            f"-DNYBBLE_TORCH_DIR={tools.torch.folder}",
            *("-DNYBBLE_CUDA=ON", "-DNYBBLE_CUDA_ARCHS=80-real", "-DNYBBLE_CHECK_SPILLS=ON"),
        ],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [tools.ninja, "-C", folder, "-k0", "nybble_cuda"],
        check=False,
        capture_output=True,
        text=True,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "hot.cu" in failed[0], done.stdout
    assert "Registers are spilled" in done.stdout
    assert list(folder.rglob("cold.cu.o"))


ERRORS = """\
#include <cstdio>
#include "cuda/common/launch.cuh"
int main() {
  using nybble::cuda::status;
  for (int error : {0, 35, 209, 222, 2}) {
    const char* text = status(static_cast<cudaError_t>(error)).error;
    std::printf("%s\\n", text == nullptr ? "" : text);
  }
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_errors_of_drivers_and_architectures_name_doctor(tmp_path: Path) -> None:
    """CUDA's own words, "no kernel image", tell nobody what to do."""
    (tmp_path / "errors.cu").write_text(ERRORS)
    command = ["nvcc", "-std=c++17", "-cudart", "static", f"-I{sources.CHECKOUT}", "errors.cu"]
    subprocess.run([*command, "-o", "errors"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([tmp_path / "errors"], check=True, capture_output=True, text=True)
    good, driver, image, ptx, other = done.stdout.split("\n")[:5]
    assert good == "" and other == "out of memory"
    assert "driver is older" in driver and "nybble doctor" in driver
    assert "no code for this GPU" in image and image == ptx and "nybble doctor" in image


def test_the_default_list_has_hoppers_own_instructions() -> None:
    assert "90a-real" in [
        name for a in cuda.parse_arch_list(" ".join(cuda.DEFAULT)) for name in a.cmake()
    ]


def test_compile_times_are_read_from_ninjas_log() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "profile_compile.py"))
    for name in ("seconds_by_output", "table"):
        runner = doctest.DocTestRunner()
        for example in doctest.DocTestFinder().find(tool[name], name, globs=tool):
            assert runner.run(example).failed == 0
