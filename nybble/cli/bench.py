"""``nybble bench``: how fast this machine decodes, and how fast each op is beside PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nybble.errors import SettingError

if TYPE_CHECKING:
    from nybble.benchmarks.report import Report

bench = typer.Typer(
    help="Measure decoding and the ops, beside the speed of this machine's memory.",
    no_args_is_help=True,
    add_completion=False,
)

Threads = Annotated[
    int | None, typer.Option(help="CPU threads.", show_default="PyTorch's number", min=1)
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")]


@bench.command()
def decode(
    shape: Annotated[
        str, typer.Option(help="llama-3.2-1b, tinyllama-1.1b or tiny.")
    ] = "llama-3.2-1b",
    bits: Annotated[int, typer.Option(help="Width of the weights: 2, 3, 4, 5, 6 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Inputs that share a scale.")] = 128,
    act_bits: Annotated[
        int | None,
        typer.Option(
            help="Precision of activations in quantized products: 8, 16 or 32.", show_default="16"
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    tokens: Annotated[int, typer.Option(help="Tokens to decode.", min=1)] = 32,
    prefill: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 512,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Decode greedily with a model of random weights: no checkpoint is needed.

    Examples:

      nybble bench decode

      nybble bench decode --shape tinyllama-1.1b --threads 8 --out decode.json
    """
    from nybble.benchmarks import decode as benchmark

    report = benchmark.run(
        shape,
        bits=bits,
        group=group,
        act_bits=act_bits,
        device=device,
        threads=threads,
        tokens=tokens,
        prefill=prefill,
    )
    _show(report, as_json, out)


@bench.command()
def ops(
    device: Device = "cpu",
    size: Annotated[
        int, typer.Option(help="Inputs and outputs of the quantized matrix, on the CPU.", min=128)
    ] = 8192,
    threads: Threads = None,
    seconds: Annotated[
        float, typer.Option(help="Time spent on each measurement, about, on the CPU.", min=0.0)
    ] = 0.5,
    only: Annotated[
        str, typer.Option(help="On a GPU: some of matmul,attention,ops.", show_default="all")
    ] = "",
    plot: Annotated[
        Path | None, typer.Option(help="On a GPU: write a picture of the products (.svg, .png).")
    ] = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Time each op beside its PyTorch expression; on a GPU also beside targets and what the GPU can do at most.

    Examples:

      nybble bench ops

      nybble bench ops --size 4096 --json

      nybble bench ops --device cuda --out gpu.json --plot gpu.svg
    """
    if device != "cpu":
        _show(_gpu_ops(device, only, plot), as_json, out)
        return
    if only or plot is not None:
        raise SettingError("--only and --plot go with --device cuda")
    from nybble.benchmarks import ops as benchmark

    _show(benchmark.run(size=size, threads=threads, seconds=seconds), as_json, out)


def _gpu_ops(device: str, only: str, plot: Path | None) -> Report:
    from nybble.benchmarks import gpu, gpu_device, gpu_plot

    gpu_device.check_device(device)
    if plot is not None:
        gpu_plot.check_plot(plot)
    report = gpu.run(only.split(",") if only else gpu.PARTS)
    if plot is not None:
        gpu_plot.save(report, plot)
    return report


def _show(report: Report, as_json: bool, out: Path | None) -> None:
    record = json.dumps(report.record(), indent=1)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(record + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingError(f"--out {out}: {error.strerror}; give a file to write") from error
    if as_json:
        typer.echo(record)
    else:
        report.print()
