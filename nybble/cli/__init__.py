"""The command ``nybble``.

One command a file, imported when it is asked for; what a command needs, it imports when it runs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import nybble
from nybble.errors import NybbleError

INTERRUPTED = 130  # the shell's code for Ctrl-C

# Command -> its function, or its typer.Typer where it has commands of its own.
COMMANDS = {
    "generate": "nybble.cli.generate:generate",
    "chat": "nybble.cli.chat:chat",
    "quantize": "nybble.cli.quantize:quantize",
    "eval": "nybble.cli.eval:evaluate",
    "info": "nybble.cli.info:info",
    "doctor": "nybble.cli.doctor:doctor",
    "build": "nybble.cli.build:build",
    "bench": "nybble.cli.bench:bench",
}


class Commands(TyperGroup):
    """Imports a command when it is asked for, and says in one line what went wrong in it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, typer.Typer):
            command, function = typer.Typer(add_completion=False), command
            command.command(cmd_name)(function)
        made = typer.main.get_command(command)
        made.name = cmd_name
        return made

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a NybbleError becomes exit code 1, Ctrl-C 130."""
        try:
            return super().invoke(ctx)
        except NybbleError as error:
            from nybble import env

            if env.flag("NYBBLE_VERBOSE"):
                raise
            typer.secho(f"nybble: {error}", fg="red", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


main = typer.Typer(
    cls=Commands,
    name="nybble",
    help="Run, make and serve low-bit language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]nybble chat[/bold]; [bold]nybble doctor[/bold] tells what this "
    "machine can do.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nybble {nybble.__version__}")
        raise typer.Exit


@main.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    # A pipe may have an encoding that lacks a character of the text.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
