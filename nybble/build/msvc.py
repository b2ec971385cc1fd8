"""Microsoft's C++ compiler, found by the folders Visual Studio 2017 to 2022 (and later) installs itself into."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Newest first, and the smallest edition first: it has the compiler and nothing else that could go wrong.
YEARS = ("2026", "18", "2022", "2019", "2017")
EDITIONS = ("BuildTools", "Community", "Professional", "Enterprise", "Preview")


def program_folders() -> list[Path]:
    """Both program folders of Windows, the 64-bit one first."""
    names = ("ProgramW6432", "ProgramFiles", "ProgramFiles(x86)")
    return list(dict.fromkeys(Path(os.environ[name]) for name in names if os.environ.get(name)))


def numbers(version: str) -> tuple[int, ...]:
    """A dotted version as numbers, so that 14.9 comes before 14.38."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def from_vswhere(folders: list[Path]) -> Iterator[Path]:
    """Installation folders as Visual Studio's own finder names them; nothing where it is not installed."""
    for folder in folders:
        program = folder / "Microsoft Visual Studio" / "Installer" / "vswhere.exe"
        if not program.is_file():
            continue
        try:
            done = subprocess.run(
                [str(program), "-products", "*", "-format", "json", "-utf8"],
                capture_output=True,
                check=True,
                timeout=30,
            )
            found = json.loads(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            continue  # a broken finder says nothing about the folders, which are looked through next
        for entry in sorted(
            found, key=lambda e: numbers(e.get("installationVersion", "0")), reverse=True
        ):
            yield Path(entry["installationPath"])


def from_folders(folders: list[Path]) -> Iterator[Path]:
    """Installation folders by year and edition."""
    for year in YEARS:
        for folder in folders:
            for edition in EDITIONS:
                place = folder / "Microsoft Visual Studio" / year / edition
                if place.is_dir():
                    yield place


def newest_cl(installation: Path) -> Path | None:
    """The 64-bit compiler of an installation, of its newest toolset."""
    toolsets = installation / "VC" / "Tools" / "MSVC"
    found = [p for p in toolsets.glob("*/bin/Hostx64/x64/cl.exe") if numbers(p.parents[3].name)]
    return max(found, key=lambda p: numbers(p.parents[3].name), default=None)


def find_cl() -> Path | None:
    """``cl.exe`` of the newest Visual Studio found, or ``None``."""
    folders = program_folders()
    for installation in (*from_vswhere(folders), *from_folders(folders)):
        compiler = newest_cl(installation)
        if compiler is not None:
            return compiler
    return None


def environment(compiler: Path) -> dict[str, str]:
    """The variables ``vcvars64.bat`` sets (INCLUDE, LIB, PATH): without them the compiler finds no header.

    Empty when INCLUDE is set already (a developer prompt) or the script is not there.
    """
    script = next(
        (p / "Auxiliary" / "Build" / "vcvars64.bat" for p in compiler.parents if p.name == "VC"),
        None,
    )
    if os.environ.get("INCLUDE") or script is None or not script.is_file():
        return {}
    done = subprocess.run(
        f'"{script}" >nul && set',
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
