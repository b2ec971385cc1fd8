"""Streamed text on the terminal, and the line about its speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from nybble.generator.request import Piece


class Shown:
    """The pieces that have come so far."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def print(self, pieces: Iterator[Piece], *, echo: bool = True) -> None:
        """Take pieces to the end, writing each to standard output as it comes."""
        for piece in pieces:
            self._pieces.append(piece)
            if echo:
                typer.echo(piece.text, nl=False)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(piece.text for piece in self._pieces)

    def speed(self) -> str:
        """One line: tokens and tokens a second of prompt and answer."""
        last = self._pieces[-1] if self._pieces else None
        if last is None or last.usage is None or last.timings is None:
            return f"[interrupted after {self._tokens()} tokens]"
        times = last.timings
        return (
            f"[prompt: {last.usage.prompt_tokens} tokens, {times.prefill_rate:.1f} tokens/s | "
            f"text: {last.usage.completion_tokens} tokens, {times.decode_rate:.1f} tokens/s | "
            f"{last.finish_reason}]"
        )

    def as_json(self) -> str:
        """The same as one JSON object."""
        last = self._pieces[-1] if self._pieces else None
        record: dict[str, object] = {
            "text": self.text,
            "token_ids": [i for piece in self._pieces for i in piece.token_ids],
            "finish_reason": (last and last.finish_reason) or "cancelled",
        }
        if last is not None and last.usage is not None and last.timings is not None:
            rates = {
                "prefill_rate": last.timings.prefill_rate,
                "decode_rate": last.timings.decode_rate,
            }
            record |= {"usage": asdict(last.usage), "timings": asdict(last.timings) | rates}
        return json.dumps(record, ensure_ascii=False)

    def _tokens(self) -> int:
        return sum(len(piece.token_ids) for piece in self._pieces)
