"""Imports go one way: each folder may import only from the layers below it (docs/map.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nybble"

# From the ground up. A room imports its own folder and any room on a lower floor; rooms of one floor do not meet.
FLOORS: list[set[str]] = [
    {"errors", "env"},
    {"build"},
    {"ops"},
    {"formats"},
    {"modules", "compat"},
    {"models", "cache"},
    {"generator", "quantize"},
    {"benchmarks", "server"},
    {"cli"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# cache implements the interface that modules.interfaces owns, and sees nothing else of modules.
NARROW = {("cache", "modules"): {"nybble.modules.interfaces"}}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that ``path`` imports while it is being imported."""
    package = ["nybble", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.parse(path.read_text()).body:
        for inner in [node] if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []:
            if isinstance(inner, ast.Import):
                yield from ((inner.lineno, alias.name) for alias in inner.names)
            elif isinstance(inner, ast.ImportFrom):
                base = package[: len(package) - inner.level + 1] if inner.level else []
                name = ".".join([*base, *([inner.module] if inner.module else [])])
                yield from ((inner.lineno, f"{name}.{alias.name}") for alias in inner.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "nybble" and len(parts) > 1 and parts[1] in FLOOR else None


def offence(path: Path, line: int, module: str) -> str | None:
    home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    target = room_of(module)
    if target == "compat" and home != "compat":  # the old names are for other people's programs
        return f"{path.relative_to(PACKAGE.parent)}:{line} imports {module}"
    if home not in FLOOR or target is None or target == home or FLOOR[target] < FLOOR[home]:
        allowed = NARROW.get((home, target or ""))
        if allowed is None or any(module.startswith(name) for name in allowed):
            return None
    return f"{path.relative_to(PACKAGE.parent)}:{line} imports {module}"


def test_imports_go_down() -> None:
    offences = [
        text
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, module in imports(path)
        if (text := offence(path, line, module))
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("home", "module", "allowed"),
    [
        ("ops/norm.py", "nybble.formats.exl2", False),
        ("formats/exl2.py", "nybble.ops.packed", True),
        ("cache/flat.py", "nybble.modules.interfaces", True),
        ("cache/flat.py", "nybble.modules.linear", False),
        ("quantize/job.py", "nybble.generator.llm", False),
        ("compat/exllamav2_ext.py", "nybble.ops.packed", True),
        ("cli/info.py", "nybble.compat", False),
    ],
)
def test_the_guard_itself(home: str, module: str, allowed: bool) -> None:
    assert (offence(PACKAGE / home, 1, module) is None) == allowed


def test_every_room_has_a_floor() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert rooms <= FLOOR.keys() | {"demo"}, f"without a floor: {sorted(rooms - FLOOR.keys())}"


def test_kernels_know_no_framework() -> None:
    csrc = PACKAGE.parent / "csrc"
    offences = [
        f"{path.relative_to(csrc)}: {line.strip()}"
        for path in sorted(csrc.rglob("*"))
        if path.is_file() and path.relative_to(csrc).parts[0] != "binding"
        for line in path.read_text().splitlines()
        if line.lstrip().startswith("#include")
        and ("torch/" in line or "ATen" in line or "c10" in line)
    ]
    assert not offences, "\n".join(offences)
