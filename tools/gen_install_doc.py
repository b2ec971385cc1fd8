"""Writes the table of the 88 into docs/install.md, between its two marks: python tools/gen_install_doc.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this file runs as a program

from nybble.build import matrix  # noqa: E402

PAGE = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- the 88: written by tools/gen_install_doc.py -->\n", "<!-- end of the 88 -->\n"


def several(values: list[str]) -> str:
    """Values once each, in order.

    >>> several(["3.10", "3.11", "3.10"])
    '3.10, 3.11'
    """
    return ", ".join(dict.fromkeys(values))


def table() -> str:
    """One line for each system, toolkit and reason, with the torch releases and Pythons it stands for."""
    groups: dict[tuple[str, ...], list[matrix.Row]] = {}
    for row in matrix.classic():
        toolkit = f"CUDA {row.cuda}" if row.cuda else f"ROCm {row.rocm}" if row.rocm else "none"
        key = (row.system, toolkit, row.note, row.blocked, row.served)
        groups.setdefault(key, []).append(row)
    lines = [
        "| rows | built on | toolkit | torch | Python | why it cannot be built here | take instead |",
        "|---|---|---|---|---|---|---|",
    ]
    for (system, toolkit, note, blocked, served), rows in groups.items():
        kind = f"{len(rows)} {rows[0].kind}{'s' if len(rows) > 1 else ''}"
        torch, python = several([r.torch for r in rows]), several([r.python for r in rows])
        why = blocked or "it can"
        cells = [f"{kind} ({note})" if note else kind, system, toolkit, torch, python, why, served]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """The page with the table as the plan says now."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
