"""``nybble info``: what a checkpoint is, how large, and what would stop it from running."""

from __future__ import annotations

import json as json_text
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.formats.detect import Checkpoint

CACHE_BYTES = 4  # a number in the cache on the CPU: float32


@dataclass(frozen=True)
class Layer:
    """One linear layer, or several that are alike."""

    name: str  # {} stands for a layer's number
    count: int
    kind: str
    inputs: int
    outputs: int
    bits_per_weight: float
    nbytes: int  # of all of them


@dataclass(frozen=True)
class Report:
    """What the command prints."""

    path: str
    architecture: str
    format: str
    parameters: int
    bits_per_weight: float  # over the linear layers
    file_bytes: int
    context: int
    cache_bytes: int
    memory_bytes: int
    problems: list[str]
    layers: list[Layer]


def info(
    path: Annotated[
        str, typer.Argument(help="demo, a checkpoint's folder, or a hub id (owner/name).")
    ],
    context: Annotated[
        int | None,
        typer.Option(help="Tokens to plan the cache for.", show_default="the model's, up to 8192"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a checkpoint's architecture, format, bits a weight by layer, sizes and memory. Reads
    it, runs nothing.

    Exit code 1 when something would stop it from running.
    """
    from nybble.formats.detect import open_checkpoint
    from nybble.models.hub import resolve

    report = describe(open_checkpoint(resolve(path)), context)
    if json:
        typer.echo(json_text.dumps(asdict(report), indent=2))
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


def describe(checkpoint: Checkpoint, context: int | None = None) -> Report:
    """Read every layer of ``checkpoint``; what is wrong with one becomes a line in ``problems``,
    not an error."""
    problems: list[str] = []
    rows: dict[tuple[Any, ...], list[int]] = {}
    parameters, covered, bits, weights = 0, set[str](), 0.0, 0
    for key in checkpoint.linears():
        try:
            layer = checkpoint.linear(key)
        except NybbleError as error:
            problems.append(str(error))
            continue
        kind = checkpoint.kind(key)
        covered |= {f"{key}.{part}" for part in layer.tensors()}
        bias = layer.tensors().get("bias")
        parameters += layer.K * layer.N + (0 if bias is None else bias.numel())
        if kind != "fp16" or "embed" not in key:
            bits += layer.bits_per_weight * layer.K * layer.N
            weights += layer.K * layer.N
        same = (
            re.sub(r"\.\d+\.", ".{}.", key),
            kind,
            layer.K,
            layer.N,
            round(layer.bits_per_weight, 3),
        )
        rows.setdefault(same, []).append(layer.nbytes)
    quantized = {key for key in checkpoint.linears() if checkpoint.kind(key) != "fp16"}
    for name in checkpoint.names():
        if name not in covered and name.rpartition(".")[0] not in quantized:
            parameters += _numel(checkpoint.info(name).shape)
    cache, used = _cache(checkpoint, context, problems)
    size = sum(file.size for file in checkpoint.files)
    names = checkpoint.config.get("architectures") or [
        checkpoint.config.get("model_type", "unknown")
    ]
    return Report(
        path=str(checkpoint.path),
        architecture=str(names[0] if isinstance(names, list) else names),
        format=checkpoint.format,
        parameters=parameters,
        bits_per_weight=round(bits / max(1, weights), 3),
        file_bytes=size,
        context=used,
        cache_bytes=cache,
        memory_bytes=size + cache,
        problems=problems,
        layers=[Layer(k[0], len(v), k[1], k[2], k[3], k[4], sum(v)) for k, v in rows.items()],
    )


def _cache(checkpoint: Checkpoint, context: int | None, problems: list[str]) -> tuple[int, int]:
    """Bytes of the cache and the context they are for; what config.json lacks is a problem."""
    from nybble.models.config import ModelConfig

    if checkpoint.tokenizer_path is None:
        problems.append(
            f"{checkpoint.path}: tokenizer.json is missing; copy it from the original model."
        )
    try:
        config = ModelConfig.from_dict(checkpoint.config)
    except NybbleError as error:
        problems.append(str(error))
        return 0, 0
    tokens = context or min(config.max_positions, 8192)
    return 2 * config.layers * config.kv_heads * config.head_dim * tokens * CACHE_BYTES, tokens


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _size(count: int) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} {unit}"


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    out = Console(soft_wrap=True, highlight=False)
    for name, value in (
        ("path", report.path),
        ("architecture", report.architecture),
        ("format", f"{report.format}, {report.bits_per_weight:.3f} bits a weight"),
        ("parameters", f"{report.parameters:,}"),
        ("on disk", _size(report.file_bytes)),
        (
            "memory",
            f"{_size(report.memory_bytes)} with a cache of {_size(report.cache_bytes)} "
            f"({report.context} tokens)",
        ),
    ):
        out.print(f"{name:<13} {value}", markup=False)
    table = Table()
    table.add_column("layer", overflow="fold")  # a cut name would hide which layer it is
    for title in ("count", "kind", "inputs", "outputs", "bits", "size"):
        table.add_column(title, no_wrap=True)
    for layer in report.layers:
        cells = (str(layer.count), layer.kind, str(layer.inputs), str(layer.outputs))
        table.add_row(layer.name, *cells, f"{layer.bits_per_weight:.3f}", _size(layer.nbytes))
    out.print(table)
    for problem in report.problems:
        out.print(f"would not run: {problem}", style="red", markup=False)
    if not report.problems:
        out.print("Nothing seen that would stop it from running.")
