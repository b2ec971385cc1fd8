"""Tokens to text, as they come: no half character and no part of a stop string is ever shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
# A character is at most 4 bytes, so this many tokens without a whole one are garbage: show it
# rather than hold it.
MOST_HELD = 16


class Detokenizer:
    """Incremental decoding.

    Decodes a window of the last few tokens and shows what the newest added. The window starts with
    tokens already shown (at first the prompt's end), because decoders treat the first token of a
    text differently.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context)  # tokens shown, then tokens not shown
        self._shown = len(self._window)

    def push(self, token: int) -> str:
        """The text that ``token`` completes; "" while a character is incomplete."""
        self._window.append(token)
        return self._take(len(self._window) - self._shown < MOST_HELD)

    def finish(self) -> str:
        """The text held back, incomplete characters as U+FFFD."""
        return self._take(False)

    def _take(self, hold: bool) -> str:
        before = self._decode(self._window[: self._shown])
        now = self._decode(self._window)
        if len(now) <= len(before) or (hold and now.endswith(REPLACEMENT)):
            return ""
        del self._window[: self._shown]
        self._shown = len(self._window)
        return now[len(before) :]


class TextStream:
    """Shown text of one request: detokenized, cut at the first stop string.

    >>> stream = TextStream(lambda ids: "".join(map(chr, ids)), stops=("end",))
    >>> [stream.push(ord(c)) for c in "an end"], stream.stopped
    (['a', 'n', ' ', '', '', ''], True)
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stops: Sequence[str] = (),
        context: Sequence[int] = (),
    ) -> None:
        self._detokenizer = Detokenizer(decode, context)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False  # a stop string has appeared

    def push(self, token: int) -> str:
        """The text that is safe to show after ``token``."""
        return self._show(self._detokenizer.push(token))

    def finish(self) -> str:
        """Everything held back; "" after a stop string."""
        if self.stopped:
            return ""
        shown = self._show(self._detokenizer.finish()) + self._held
        self._held = ""
        return shown

    def _show(self, text: str) -> str:
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            shown, self._held, self.stopped = self._held[: min(found)], "", True
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
