"""``nybble build``: build the native library now instead of at first use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def build(
    output: Annotated[
        Path | None, typer.Option(help="Folder to copy the library to. Default: only the cache.")
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Forget the built library and its objects first.")
    ] = False,
    sanitize: Annotated[
        str, typer.Option(help="Sanitizers for the CPU code: address,undefined.")
    ] = "",
    archs: Annotated[
        str | None,
        typer.Option(help="CUDA architectures as in TORCH_CUDA_ARCH_LIST, or all."),
    ] = None,
    check_spills: Annotated[
        bool,
        typer.Option("--check-spills", help="Fail where a CUDA unit marked hot spills registers."),
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Build nothing: list the wheels of a release.")
    ] = False,
    classic: Annotated[
        bool,
        typer.Option("--classic", help="With --plan: one wheel a Python, toolkit and torch."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="With --plan: machine-readable.")] = False,
) -> None:
    """Build the native library and say where it is."""
    if plan_only:
        from nybble.cli.plan import show_plan

        show_plan(classic=classic, as_json=json)
        return
    if classic or json:
        raise typer.BadParameter("--classic and --json go with --plan")
    from nybble.build import compile as building
    from nybble.build import progress, sources, toolchain

    plan = building.plan(sanitize=sanitize, archs=archs, check_spills=check_spills)
    if clean:
        building.forget(plan)
    path = building.cached(plan.key)
    if path is None:
        started = time.perf_counter()
        with progress.bar("asked for by nybble build") as shown:
            path = building.build(plan, shown)
        seconds = time.perf_counter() - started
        typer.echo(f"Built in {seconds:.0f} s with {toolchain.jobs()} jobs.")
    if output is not None:
        path = building.put(path, output / sources.library_name())
    record = sources.read_build_info(path) or {}
    typer.echo(str(path))
    typer.echo(
        f"CPU: {', '.join(record['isas'])}. CUDA: {', '.join(record['cuda_archs']) or 'none'}."
    )
