"""Finds what a build needs, and says in one sentence what is missing and which command brings it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from nybble import env
from nybble.build import msvc
from nybble.errors import BuildError, help_at

MINIMUM_TORCH = (2, 10)


@dataclass(frozen=True)
class Torch:
    """An installed torch, read from its files without importing it."""

    folder: Path
    version: str
    cuda: str | None  # version of CUDA it was made with
    hip: str | None  # version of ROCm it was made with


@dataclass(frozen=True)
class Tools:
    """Everything a native build runs."""

    cmake: Path
    ninja: Path
    compiler: Path
    torch: Torch


def find_torch() -> Torch:
    """The torch of this Python. Raises ``BuildError`` when it is missing or too old to build against.

    pip hides the installed packages from a build; their folder is still known, so a wheel can be built against the torch that is
    there instead of downloading a second one.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    folders += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("platlib", "purelib")]
    for folder in folders:
        facts = folder / "version.py"
        if facts.is_file():
            found = read_torch_version(folder)
            if version_tuple(found.version) < MINIMUM_TORCH:
                raise BuildError(
                    f"building the native library needs torch 2.10 or later, and torch {found.version} is installed: "
                    "take a wheel of nybble, whose library works with this torch too, or pip install --upgrade 'torch>=2.10'"
                )
            return found
    raise BuildError("torch is not installed for this Python: pip install 'torch>=2.10'")


def read_torch_version(folder: Path) -> Torch:
    """Facts from ``torch/version.py``: three assignments of a string or ``None``."""
    content = (folder / "version.py").read_text()

    def value(name: str) -> str | None:
        found = re.search(rf"^{name}\s*(?::[^=]*)?=\s*['\"]([^'\"]*)['\"]", content, re.MULTILINE)
        return found.group(1) if found else None

    return Torch(folder, value("__version__") or "0", value("cuda"), value("hip"))


def version_tuple(version: str) -> tuple[int, int]:
    """Major and minor number. ``version_tuple("2.13.0+cpu")`` is ``(2, 13)``."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else (0, 0)


def find_program(name: str) -> Path | None:
    """A program from PyPI (``cmake``, ``ninja``): beside this Python, else on PATH.

    Beside Python comes first because a virtual environment that is not activated has its programs there and not on PATH.
    """
    beside = shutil.which(
        name,
        path=os.pathsep.join((str(Path(sys.executable).parent), sysconfig.get_path("scripts"))),
    )
    found = beside or shutil.which(name)
    return Path(found) if found else None


def find_compiler() -> Path | None:
    """The C++ compiler: ``CXX``, else the usual names on PATH, else Visual Studio's by its folders."""
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        # CXX may carry a launcher or flags, as in "ccache g++": CMake splits it the same way.
        found = shutil.which(chosen) or shutil.which(chosen.split()[0])
        if not found:
            raise BuildError(
                f"CXX={chosen} names no program: unset CXX, or set it to a C++17 compiler"
            )
        return Path(found)
    if sys.platform == "win32":
        found = shutil.which("cl")
        return Path(found) if found else msvc.find_cl()
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return Path(found)
    return None


def compiler_advice() -> str:
    """The command that brings a C++ compiler on this system."""
    if sys.platform == "win32":
        return 'winget install Microsoft.VisualStudio.2022.BuildTools --override "--add Microsoft.VisualStudio.Workload.VCTools"'
    if sys.platform == "darwin":
        return "xcode-select --install"
    for program, command in (
        ("apt-get", "sudo apt-get install g++"),
        ("dnf", "sudo dnf install gcc-c++"),
        ("pacman", "sudo pacman -S gcc"),
        ("apk", "sudo apk add g++"),
        ("zypper", "sudo zypper install gcc-c++"),
    ):
        if shutil.which(program):
            return command
    return "install g++ or clang++ with your system's package manager"


def find_tools() -> Tools:
    """All tools of a build, or ``BuildError`` naming everything that is missing with its command."""
    torch = find_torch()
    compiler, cmake, ninja = find_compiler(), find_program("cmake"), find_program("ninja")
    missing = []
    if compiler is None:
        missing.append(f"no C++ compiler was found: {compiler_advice()} ({help_at('no-compiler')})")
    absent = [name for name, path in (("cmake", cmake), ("ninja", ninja)) if path is None]
    if absent:
        missing.append(f"{' and '.join(absent)} not found: pip install {' '.join(absent)}")
    if compiler is None or cmake is None or ninja is None:
        raise BuildError("; ".join(missing))
    return Tools(cmake, ninja, compiler, torch)


def output_of(*command: str | Path) -> str | None:
    """What a program prints, or ``None`` when it cannot run or fails. For version questions only."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or done.stderr.strip()


def jobs() -> int:
    """How many compilers may run at once: ``MAX_JOBS``, else one a core this process may use."""
    wanted = env.integer("MAX_JOBS")
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
