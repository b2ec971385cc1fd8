"""Recorded calls of the old modules, run against ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check(data: Path, family: str) -> None:
    """Every case of a family passes."""
    tool, calls = data / "golden" / "replay.py", data / "golden" / "ext"
    done = subprocess.run(
        [sys.executable, tool, calls, "--device", "cpu", "--family", family, "--path", ROOT, "-v"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
