"""What the library asks the loader for, shown on one unit and a torch that is only pretended."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nybble.build import sources, toolchain
from tools import check_abi

ASSIGN = "_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE9_M_assignERKS4_"
UNIT = """\
#include <string>
extern "C" __attribute__((visibility("default"))) void unit(std::string& to, const std::string& from) { to = from; }
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the linker's order is Linux's")
def test_the_runtimes_symbols_are_not_taken_from_torch(tmp_path: Path) -> None:
    """Torch for arm64 has libstdc++ in itself and exports it: the library was linked with torch for two functions of strings."""
    cmake, ninja = toolchain.find_program("cmake"), toolchain.find_program("ninja")
    compiler = toolchain.find_compiler()
    if cmake is None or ninja is None or compiler is None:
        pytest.skip("no compiler, cmake or ninja")
    torch, tree, folder = tmp_path / "torch", tmp_path / "csrc", tmp_path / "build"
    for file in ("version.py", "include/torch/csrc/stable/library.h", "lib/fake.cpp"):
        (torch / file).parent.mkdir(parents=True, exist_ok=True)
        (torch / file).touch()
    (torch / "lib" / "fake.cpp").write_text(f'extern "C" void {ASSIGN}() {{}}\n')
    command = [compiler, "-shared", "-fPIC", "-o", "libtorch_cpu.so", "-Wl,-soname,libtorch_cpu.so"]
    subprocess.run([*command, "fake.cpp"], cwd=torch / "lib", check=True)
    shutil.copytree(sources.CHECKOUT / "cmake", tree / "cmake")
    shutil.copy(sources.CHECKOUT / "CMakeLists.txt", tree)
    (tree / "cpu").mkdir()
    (tree / "cpu" / "unit.cpp").write_text(UNIT)
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DNYBBLE_TORCH_DIR={torch}", "-DNYBBLE_CUDA=OFF"]
    command = [cmake, "-S", tree, "-B", folder, "-G", "Ninja", *options]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run([ninja, "-C", folder], check=True, capture_output=True)
    library = folder / sources.library_name()
    assert check_abi.problems(check_abi.needed(library), check_abi.undefined(library)) == []
