"""The same sources make the same bytes in every folder. Shown on one unit that names its file, as a whole build takes too long."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nybble.build import sources, toolchain
from nybble.errors import BuildError

UNIT = '#include "cpu/where.h"\nextern "C" __attribute__((visibility("default"))) const char* unit() { return where(); }\n'


def build(tree: Path) -> bytes:
    """The library of a tree whose only sources are one unit and one header that tells ``__FILE__``."""
    shutil.copytree(sources.CHECKOUT / "cmake", tree / "cmake")
    shutil.copy(sources.CHECKOUT / "CMakeLists.txt", tree)
    (tree / "cpu").mkdir()
    (tree / "cpu" / "where.h").write_text("inline const char* where() { return __FILE__; }\n")
    (tree / "cpu" / "unit.cpp").write_text(UNIT)
    tools = toolchain.find_tools()
    folder = tree.parent / f"build-{tree.name}"
    subprocess.run(
        [
            *(tools.cmake, "-S", tree, "-B", folder, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tools.ninja}",
            f"-DNYBBLE_TORCH_DIR={tools.torch.folder}",
            "-DNYBBLE_CUDA=OFF",
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run([tools.ninja, "-C", folder], check=True, capture_output=True)
    return (folder / sources.library_name()).read_bytes()


def test_the_folder_does_not_show_in_the_bytes(tmp_path: Path) -> None:
    try:
        toolchain.find_tools()
    except BuildError as error:
        pytest.skip(str(error))
    (tmp_path / "longer").mkdir()
    first, second = build(tmp_path / "a"), build(tmp_path / "longer" / "name")
    assert b"csrc/cpu/where.h" in first and str(tmp_path).encode() not in first
    assert first == second
