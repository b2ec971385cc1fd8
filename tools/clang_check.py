"""Compiles every CUDA unit with clang for an architecture that nvcc 13 has dropped: python tools/clang_check.py sm_60 sm_70

Looks for instructions that an architecture has not: nothing is linked or run. Needs clang 19 (Debian: clang-19) and, from PyPI, the
headers and ptxas of CUDA 12.8 in the folder --packages:

    pip install --target FOLDER --no-deps nvidia-cuda-nvcc-cu12==12.8.93 nvidia-cuda-runtime-cu12==12.8.90 \\
        nvidia-cuda-cccl-cu12==12.8.90 nvidia-curand-cu12==10.3.9.90

clang itself refuses what nvcc takes: a table of host functions in a unit, and shared variables whose members have initial values.
Such a unit fails for every architecture, so compare with sm_75.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
PARTS = ("cuda_nvcc", "cuda_runtime", "cuda_cccl", "curand")


def toolkit(packages: Path, folder: Path) -> Path:
    """The packages' headers, libdevice and ptxas in the places of a CUDA toolkit."""
    for part in PARTS:
        shutil.copytree(
            packages / "nvidia" / part / "include", folder / "include", dirs_exist_ok=True
        )
    shutil.copytree(packages / "nvidia" / "cuda_nvcc" / "nvvm", folder / "nvvm")
    (folder / "bin").mkdir()
    shutil.copy(packages / "nvidia" / "cuda_nvcc" / "bin" / "ptxas", folder / "bin")
    (folder / "bin" / "ptxas").chmod(0o755)
    (folder / "lib64").mkdir()
    return folder


def reason(output: str) -> str:
    """The most frequent error in the output of clang or ptxas.

    >>> reason("x.s, line 1; error   : Feature 'mma' requires .target sm_70 or higher\\nptxas fatal   : aborted")
    "Feature 'mma' requires .target sm_70 or higher"
    """
    found = Counter(re.findall(r"(?:error|fatal)\s*: (.*)", output))
    return found.most_common(1)[0][0].strip() if found else "no reason told"


def check(clang: str, arch: str, cuda: Path, unit: Path, output: Path) -> str | None:
    """Why a unit does not compile; ``None``: it does."""
    done = subprocess.run(
        [
            *(clang, "-x", "cuda", "--cuda-device-only", f"--cuda-gpu-arch={arch}"),
            *(f"--cuda-path={cuda}", "-std=c++17", "-O2", "-Wno-unknown-cuda-version"),
            *(f"-I{CSRC}", "-c", unit, "-o", output),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else reason(done.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arch", nargs="+", help="such as sm_60")
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--clang", default="clang++-19")
    options = parser.parse_args()
    units = sorted((CSRC / "cuda").rglob("*.cu"))
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        cuda = toolkit(options.packages, Path(name) / "cuda")
        for arch in options.arch:
            found = {
                unit: check(options.clang, arch, cuda, unit, Path(name) / "x.o") for unit in units
            }
            for unit, problem in found.items():
                if problem:
                    print(f"{arch} {unit.relative_to(CSRC)}: {problem}")
            bad = sum(problem is not None for problem in found.values())
            print(f"{arch}: {len(units) - bad} of {len(units)} units compile")
            failed += bad
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
