"""The library through the plain C interface, beside the one that serves torch's ops."""

from __future__ import annotations

import shutil
from pathlib import Path

from nybble.ops import _native
from nybble.ops._c_interface import Library


def other_library(folder: Path) -> Library | None:
    """The library once more, as a file with a state of its own, through C; ``None`` where the ops do not use the stable ABI."""
    state = _native.ensure_loaded()
    if state.path is None or state.interface != "stable ABI":
        return None
    return Library(Path(shutil.copy(state.path, folder)))
