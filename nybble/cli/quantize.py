"""``nybble quantize``: make a checkpoint small."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[Path, typer.Argument(help="Folder of a full-precision checkpoint.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to make.", show_default="MODEL-BITSbpw"),
    ] = None,
    bits: Annotated[
        float, typer.Option(help="Stored bits a weight, scales included, the head not.")
    ] = 4.0,
    head_bits: Annotated[int, typer.Option(help="Bits of the head: 2, 3, 4, 5, 6 or 8.")] = 6,
    group_size: Annotated[int, typer.Option(help="Rows that share a scale: 32, 64 or 128.")] = 128,
    method: Annotated[
        str, typer.Option(help="rtn: round to nearest, without calibration text.")
    ] = "rtn",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output if it exists.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Quantize a checkpoint to EXL2; run the same command again to resume one that was stopped."""
    import json

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from nybble.errors import SettingError
    from nybble.quantize.job import Settings, quantize_rtn

    if method != "rtn":
        raise SettingError(f"--method: expected rtn, got {method!r}")
    target = output or model.resolve().parent / f"{model.resolve().name}-{bits:g}bpw"
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("reading", total=None)
            report = quantize_rtn(
                model,
                target,
                Settings(bits=bits, head_bits=head_bits, group_size=group_size),
                force=force,
                progress=lambda done, total, what: bar.update(
                    task, completed=done, total=total, description=what
                ),
            )
    except KeyboardInterrupt:
        console.print("Stopped. Finished layers are kept; run the same command again to go on.")
        raise
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
        return
    Console().print(report.table())
    typer.echo(
        f"{report.source_bytes / 1e6:.1f} MB -> {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s. Wrote {target}. "
        f"What it cost: nybble eval {target} --against {model} --text TEXT"
    )
