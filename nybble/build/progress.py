"""A progress bar for a build, on standard error, so that a program's own output stays clean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nybble.build.compile import Progress


@contextlib.contextmanager
def bar(why: str) -> Iterator[Progress]:
    """Shows why a build happens and how far it is. On a terminal a bar; elsewhere one line, so that logs stay short."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import (
        Progress as RichProgress,
    )

    console = Console(stderr=True)
    console.print(f"Building nybble's native library ({why}).", highlight=False, soft_wrap=True)
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task("compiling", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
