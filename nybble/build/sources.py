"""What the library is made of: where its sources are, what their content hash is, what a built file says about itself."""

from __future__ import annotations

import hashlib
import json
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent / "csrc"
# build_info.h.in writes the JSON with this beginning, so it can be found in the file without running any of it.
MARK = b'{"nybble_build":1,'
TORCH_TARGET = "2.10"


def library_name() -> str:
    """File name of the library on this system."""
    return {"win32": "nybble.dll", "darwin": "libnybble.dylib"}.get(sys.platform, "libnybble.so")


def source_tree() -> Path | None:
    """Folder with ``CMakeLists.txt`` and all sources: what the package carries, or the checkout's; ``None`` where neither is."""
    for folder in (PACKAGE / "csrc", CHECKOUT):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    return None


def in_checkout() -> bool:
    """Whether this package runs from a source checkout, where sources may change under a built library."""
    return source_tree() == CHECKOUT


def source_files(tree: Path) -> Iterator[Path]:
    """Every file the library is built from, in a fixed order."""
    yield from sorted(p for p in tree.rglob("*") if p.is_file() and not p.name.startswith("."))


def content_hash(tree: Path) -> str:
    """16 hex digits over names and contents of the sources and of the CMake files, which hold the flags."""
    digest = hashlib.sha256()
    for path in source_files(tree):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(tree).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def read_build_info(path: Path) -> dict[str, Any] | None:
    """The build record inside a library file, or ``None``: the file is missing, cut off, or not ours.

    The file is read, not loaded: a stale library must never get to register its ops.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(MARK)
            end = data.find(b"\0", start)
            if start < 0 or end < 0:
                return None
            record = json.loads(data[start:end])
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
