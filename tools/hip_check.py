"""Compiles the CUDA units without tensor cores with a compiler of HIP: python tools/hip_check.py gfx1100 gfx90a

Shows that the kernels every GPU can run are in the language that ROCm has too, behind csrc/hip/compat.h. Nothing is linked or run.
Needs clang with ROCm's device library and the headers of HIP 6.4 or later (Debian: hipcc 7.0 and libamdhip64-dev).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
# What is chosen on NVIDIA's GPUs from sm_80 or sm_90 on only.
TENSOR_CORES = re.compile(
    r"wgmma|/mma|qmatmul/(few|wide)|paged_attention/(bfloat|fp8|half|q4|q8|q8_q4)\.cu"
)
FLAGS = ("-x", "hip", "-std=c++17", "-O2", f"-I{CSRC / 'hip'}", f"-I{CSRC}", "-c")
# A table of host functions is taken for the device's too, where it is not used.
LINKER = ("-Xoffload-linker", "--unresolved-symbols=ignore-all")


def units() -> list[Path]:
    """The units that are compiled."""
    found = sorted((CSRC / "cuda").rglob("*.cu"))
    return [unit for unit in found if not TENSOR_CORES.search(unit.as_posix())]


def reason(output: str) -> str:
    """The most frequent error in the output of clang.

    >>> reason("x.cu:3:1: error: no member\\n1 error generated")
    'no member'
    """
    found = Counter(re.findall(r"error: (.*)", output))
    return found.most_common(1)[0][0].strip() if found else "no reason told"


def check(command: list[str], unit: Path, output: Path) -> str | None:
    """Why a unit does not compile; ``None``: it does."""
    done = subprocess.run(
        [*command, *FLAGS, *LINKER, unit, "-o", output], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else reason(done.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arch", nargs="+", help="such as gfx1100")
    parser.add_argument("--clang", default="hipcc")
    parser.add_argument("--flag", action="append", default=[], help="for the compiler; repeatable")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for arch in options.arch:
            command = [options.clang, f"--offload-arch={arch}", *options.flag]
            found = {unit: check(command, unit, Path(folder) / "x.o") for unit in units()}
            for unit, problem in found.items():
                if problem:
                    print(f"{arch} {unit.relative_to(CSRC)}: {problem}")
            bad = sum(problem is not None for problem in found.values())
            print(f"{arch}: {len(found) - bad} of {len(found)} units compile", flush=True)
            failed += bad
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
