"""Proves on a built library that one file serves every torch and every Python 3.

    python tools/check_abi.py build/libnybble.so

It may need only the C and C++ runtime: no symbol of Python or of torch (csrc/binding/torch.h has torch's functions looked up), no
dependency on libpython, torch's libraries or a shared CUDA runtime. Exit code 1 with one line each.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LIBRARIES = re.compile(
    r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|asan|ubsan)\.so(\.\d+)?$|ld-linux.*\.so\.\d+$"
)
TORCH = re.compile(r"(aoti_)?torch_[a-z0-9_]+$")
RUNTIMES = ("GLIBC", "GLIBCXX", "CXXABI", "GCC")


def needed(path: Path) -> list[str]:
    """Names of the libraries the file asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", tool("readelf", "-dW", str(path)))


def undefined(path: Path) -> list[tuple[str, str]]:
    """Undefined dynamic symbols: name and version, the version empty where there is none."""
    found = []
    for line in tool("nm", "-D", "--undefined-only", str(path)).splitlines():
        kind, symbol = line.split()[-2:]
        if kind not in ("w", "v"):  # weak: the file does without
            name, _, version = symbol.partition("@")
            found.append((name, version.lstrip("@")))
    return found


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def problems(libraries: list[str], symbols: list[tuple[str, str]]) -> list[str]:
    """One line for each thing the file should not need."""
    found = [f"needs the library {name}" for name in libraries if not LIBRARIES.search(name)]
    for name, version in symbols:
        if name.startswith(("Py", "_Py")):
            found.append(f"uses Python's {name}")
        elif TORCH.match(name):
            found.append(f"is linked with torch's {name}: list it in csrc/binding/torch.h")
        elif not version.startswith(RUNTIMES):
            found.append(f"uses {name}, which is not of the C++ runtime")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0])
    found = problems(needed(path), undefined(path))
    for line in found:
        print(f"{path}: {line}", file=sys.stderr)
    if not found:
        print(f"{path}: needs the C++ runtime only")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
