"""``nybble chat``: a conversation in the terminal, or through a pipe, one line a turn."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nybble.cli import options, output
from nybble.errors import RequestError

if TYPE_CHECKING:
    from nybble.generator.llm import LLM
    from nybble.generator.request import SamplingParams

HELP = """\
/system TEXT  set the system message (alone: remove it) and start again
/reset        forget the conversation
/help         this list
/quit         leave; so does the end of input"""


def chat(
    model: options.Model = "demo",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", help="Most tokens an answer; 0: no limit but the context."
        ),
    ] = 0,
    temperature: options.Temperature = 0.8,
    top_p: options.TopP = 0.95,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    max_context: options.Context = None,
    device: options.Device = "auto",
    act_bits: options.ActBits = None,
) -> None:
    """Talk with a model. /help in the conversation lists its commands; Ctrl-C ends an answer.

    Examples:

      nybble chat

      nybble chat PATH --system "Answer in one sentence." --temperature 0

      printf 'Hello\\nAnd you?\\n' | nybble chat PATH
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
    )
    # Each turn begins with the last one: its keys and values are kept.
    llm = LLM(
        model,
        device=device,
        act_bits=act_bits,
        max_context=max_context,
        max_batch=1,
        reuse_prefix=True,
    )
    conversation = Conversation(llm, params, system)
    terminal = sys.stdin.isatty()
    if terminal:
        typer.echo("/help lists the commands.", err=True)
    while (line := _read(terminal)) is not None:
        if not conversation.turn(line):
            break


def _read(terminal: bool) -> str | None:
    """The next line, or None at the end of input."""
    if not terminal:
        return sys.stdin.readline() or None
    try:
        return input("> ")
    except EOFError:
        return None


class Conversation:
    """Messages so far, and what a line typed does to them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm, self._params, self._system = llm, params, system
        self._messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Back to the system message."""
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def turn(self, line: str) -> bool:
        """Do what one line asks; False: leave."""
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return False
        if command == "/reset":
            self.reset()
        elif command == "/system":
            self._system = rest.strip() or None
            self.reset()
        elif command == "/help":
            typer.echo(HELP, err=True)
        elif command.startswith("/"):
            typer.secho(f"{command} is no command; /help lists them", fg="red", err=True)
        elif command:
            self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        question = {"role": "user", "content": line.strip()}
        shown = output.Shown()
        try:
            shown.print(self._llm.chat_stream([*self._messages, question], self._params))
        except RequestError as error:
            typer.secho(f"{error} (/reset starts again)", fg="red", err=True)
            return
        except KeyboardInterrupt:
            pass  # ends this answer only; what was said stays said
        typer.echo()
        typer.echo(shown.speed(), err=True)
        self._messages += [question, {"role": "assistant", "content": shown.text.strip()}]
