"""``nybble generate``: continue a prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nybble.cli import options, output
from nybble.errors import RequestError


def generate(
    model: options.Model = "demo",
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Text to continue; -: standard input.")
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", help="Most tokens to generate; 0: no limit but the context."
        ),
    ] = 128,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end of the text.")
    ] = False,
    max_context: options.Context = None,
    device: options.Device = "auto",
    act_bits: options.ActBits = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Continue a prompt. The text goes to standard output, the speed to standard error.

    Examples:

      nybble generate --prompt "Once upon a time" --seed 1

      nybble generate PATH -p "The sea was" -n 200 --temperature 0.8 --top-p 0.95

      echo "Dear Sir," | nybble generate -p - --json
    """
    from nybble.generator.llm import LLM
    from nybble.generator.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens or None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        ignore_eos=ignore_eos,
    )
    text = _prompt(prompt)
    llm = LLM(model, device=device, act_bits=act_bits, max_context=max_context)
    pieces = llm.stream(text, params)
    shown = output.Shown()
    try:
        shown.print(pieces, echo=not as_json)
    finally:  # also after Ctrl-C, with what there is
        if as_json:
            typer.echo(shown.as_json())
        else:
            typer.echo()
            typer.echo(shown.speed(), err=True)


def _prompt(given: str | None) -> str:
    if given == "-":
        return sys.stdin.read()
    if given is None:
        raise RequestError(
            'no prompt; give one with --prompt "Once upon a time", or --prompt - for standard input'
        )
    return given
