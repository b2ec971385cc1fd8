"""Seconds that each unit of the native library takes to compile, slowest first.

    python tools/profile_compile.py BUILD_FOLDER [--again]

Reads ninja's log in a build folder (``build/*/`` of a checkout). There units ran side by side and slowed each other down;
``--again`` compiles everything anew, one at a time. A CUDA unit is compiled for every architecture of that build.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SLOW = 15.0  # seconds beyond which a unit should be split


def seconds_by_output(log: str) -> dict[str, float]:
    """Outputs and their seconds, from the text of ``.ninja_log``; the last entry of an output counts.

    >>> seconds_by_output("# ninja log v5\\n0\\t1500\\t7\\ta.o\\tabc\\n0\\t500\\t8\\ta.o\\tabc\\n")
    {'a.o': 0.5}
    """
    found = {}
    for line in log.splitlines():
        if not line.startswith("#"):
            start, end, _, output, _ = line.split("\t")
            found[output] = (int(end) - int(start)) / 1e3
    return found


def table(seconds: dict[str, float]) -> str:
    """Objects and precompiled headers, slowest first, and their sum.

    >>> print(table({"CMakeFiles/x.dir/cuda/a.cu.o": 20.0, "CMakeFiles/x.dir/b.cpp.o": 1.0, "libnybble.so": 0.2}))
       20.0  x  cuda/a.cu  (split it: over 15 s)
        1.0  x  b.cpp
       21.0  2 units
    """
    units = {
        name: taken for name, taken in seconds.items() if name.endswith((".o", ".gch", ".obj"))
    }
    lines = []
    for name, taken in sorted(units.items(), key=lambda unit: -unit[1]):
        target, _, source = name.removeprefix("CMakeFiles/").partition(".dir/")
        note = f"  (split it: over {SLOW:g} s)" if taken > SLOW else ""
        lines.append(f"{taken:7.1f}  {target}  {source.rpartition('.')[0]}{note}")
    return "\n".join([*lines, f"{sum(units.values()):7.1f}  {len(units)} units"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--again", action="store_true", help="compile everything, one at a time")
    chosen = parser.parse_args()
    if not (chosen.folder / "build.ninja").is_file():
        print(f"{chosen.folder} has no build.ninja: run `nybble build` first", file=sys.stderr)
        return 2
    if chosen.again:
        for arguments in (("-t", "clean"), ("-j1",)):
            subprocess.run(
                ["ninja", "-C", chosen.folder, *arguments], check=True, stdout=sys.stderr
            )
    print(table(seconds_by_output((chosen.folder / ".ninja_log").read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
