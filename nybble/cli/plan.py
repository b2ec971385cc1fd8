"""``nybble build --plan``: the wheels as a table or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

import nybble
from nybble.build import matrix

if TYPE_CHECKING:
    from rich.console import Console


def show_plan(*, classic: bool, as_json: bool) -> None:
    """Print the wheels nybble ships, or the 88 artefacts of the engines before."""
    rows = matrix.classic() if classic else matrix.current()
    if as_json:
        record = {"version": nybble.__version__, "rows": matrix.as_data(rows)}
        if classic:
            record["excluded"] = matrix.exclusions()
        typer.echo(json.dumps(record, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if classic:
        _show_classic(console, rows)
    else:
        _show_current(console, rows)


def _show_current(console: Console, rows: list[matrix.Row]) -> None:
    from rich.table import Table

    table = Table("name", "built on", "torch", "driver", "toolkit", box=None, pad_edge=False)
    for row in rows:
        driver = f"{row.driver} or later" if row.driver else ""
        table.add_row(row.name, row.system, row.torch, driver, row.cuda or "none")
    console.print(table, soft_wrap=False)
    console.print(f"\n{len(rows)} artefacts, for Python 3.10 and later.")
    for toolkit, note, archs in dict.fromkeys((row.cuda, row.note, row.archs) for row in rows):
        console.print(f"{f'CUDA {toolkit}' if toolkit else 'sdist'}: {note}.")
        if archs:
            console.print(f"  GPU architectures: {' '.join(archs)}.")


def _show_classic(console: Console, rows: list[matrix.Row]) -> None:
    """Each row with the letter of its reason: the same sentence forty times would hide it."""
    from rich.table import Table

    reasons = list(dict.fromkeys((row.blocked, row.served) for row in rows if row.blocked))
    letters = {reason: chr(ord("a") + i) for i, reason in enumerate(reasons)}
    head = ("kind", "built on", "Python", "toolkit", "torch", "can be built", "")
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        toolkit = f"CUDA {row.cuda}" if row.cuda else f"ROCm {row.rocm}" if row.rocm else "none"
        can = f"no ({letters[row.blocked, row.served]})" if row.blocked else "yes"
        table.add_row(row.kind, row.system, row.python, toolkit, row.torch, can, row.note)
    console.print(table, soft_wrap=False)
    console.print(f"\n{len(rows)} artefacts.")
    for (blocked, served), letter in letters.items():
        console.print(f"({letter}) {blocked}. Take instead: {served}.")
    console.print("\nLeft out of the 88:")
    for rule in matrix.EXCLUDED:
        toolkit = f"ROCm {rule.rocm}" if rule.rocm else "CUDA"
        torch = f", torch below {rule.below}" if rule.below else ""
        console.print(f"{rule.system}, Python {rule.python}, {toolkit}{torch}: {rule.reason}.")
