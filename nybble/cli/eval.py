"""``nybble eval``: perplexity of a checkpoint on a text, and its distance from another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="demo, a checkpoint's folder, or a hub id.")],
    text: Annotated[
        Path, typer.Option(help="A .txt or .txt.xz file; lines <|endoftext|> part documents.")
    ],
    against: Annotated[
        str | None,
        typer.Option(help="A checkpoint to compare with: KL divergence, top-1 agreement."),
    ] = None,
    windows: Annotated[int, typer.Option(help="How many windows; 0: the whole text.", min=0)] = 200,
    length: Annotated[int, typer.Option(help="Tokens in a window.", min=2)] = 1024,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A folder with tokenizer.json, or the file.", show_default="MODEL's own"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    act_bits: Annotated[
        int | None, typer.Option(help="Precision of activations: 8, 16 or 32.", show_default="16")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a checkpoint on text."""
    import json

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    import nybble
    from nybble.generator.tokenizer import Tokenizer
    from nybble.models.hub import resolve
    from nybble.quantize import data
    from nybble.quantize.measure import measure

    folder = resolve(model)
    reader = Tokenizer.from_folder(_tokenizer_folder(tokenizer, folder))
    subject = nybble.load_model(str(folder), device=device, act_bits=act_bits)
    other = (
        None
        if against is None
        else nybble.load_model(str(resolve(against)), device=device, act_bits=act_bits)
    )
    stream = data.tokens(
        data.documents(text), lambda part: reader.encode(part, special=False), reader.bos
    )
    chosen = data.windows(stream, length, windows or None)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("evaluating", total=windows or None)
        result = measure(
            subject,
            chosen,
            other,
            lambda done, value: bar.update(
                task, completed=done, description=f"perplexity {value:.3f}"
            ),
        )
    if as_json:
        about = {
            "model": model,
            "against": against,
            "text": str(text),
            "length": length,
            "version": nybble.__version__,
        }
        typer.echo(json.dumps({**about, **result.to_dict()}))
        return
    table = Table(
        "measure",
        "value",
        "± standard error",
        title=f"{model} on {text.name}: {result.windows} x {length} tokens",
    )
    table.add_row(
        "perplexity", f"{result.perplexity:.4f}", _spread(result.perplexity_stderr, ".4f")
    )
    if result.kl is not None and result.top1 is not None:
        table.add_row("perplexity of reference", f"{result.reference_perplexity:.4f}", "")
        table.add_row(
            "KL(reference || model), nats", f"{result.kl:.5f}", _spread(result.kl_stderr, ".5f")
        )
        table.add_row("top-1 agreement", f"{result.top1:.2%}", _spread(result.top1_stderr, ".2%"))
    Console().print(table)


def _spread(error: float | None, form: str) -> str:
    return "one window has none" if error is None else format(error, form)


def _tokenizer_folder(given: Path | None, model: Path) -> Path:
    """Where tokenizer.json is; raises SettingError when the one asked for has none."""
    from nybble.errors import SettingError

    if given is None:
        if not (model / "tokenizer.json").is_file():
            raise SettingError(f"{model} has no tokenizer.json; name a folder with --tokenizer")
        return model
    folder = given.parent if given.name == "tokenizer.json" else given
    if not (folder / "tokenizer.json").is_file():
        raise SettingError(f"--tokenizer: expected a folder with tokenizer.json, got {given}")
    return folder
