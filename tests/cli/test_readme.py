"""The commands in the README are commands: each line parses as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from nybble.cli import main

README = Path(__file__).parents[2] / "README.md"
LINES = [
    line.partition("#")[0].strip()
    for line in README.read_text().splitlines()
    if line.startswith("nybble ")
]


def test_there_are_some() -> None:
    assert len(LINES) >= 6


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith("nybble runs")])
def test_a_command_parses(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    command = typer.main.get_command(main).get_command(None, name)  # type: ignore[attr-defined]
    command.make_context(name, words)
