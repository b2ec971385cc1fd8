"""Text comes out whole: characters, spaces, stop strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.generator.stream import TextStream


def decode(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def shown(data: bytes, **options: object) -> list[str]:
    stream = TextStream(decode, **options)  # type: ignore[arg-type]
    pieces = [stream.push(b) for b in data]
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("text", ["é", "日本語 text", "👩‍👩‍👧 family", "a\ufffdb"])
def test_no_half_character_is_shown(text):
    pieces = shown(text.encode())
    assert "".join(pieces) == text
    assert text.count("\ufffd") == "".join(pieces).count("\ufffd")
    assert all("\ufffd" not in p for p in pieces) or "\ufffd" in text


@given(st.text())
def test_any_text_streams_to_itself(text):
    assert "".join(shown(text.encode())) == text


def test_broken_bytes_end_as_replacements():
    assert "".join(shown(b"ok\xe2\x82")) == "ok\ufffd"
    assert "".join(shown(b"ok\xff!")) == "ok\ufffd!"


def test_garbage_is_not_held_for_ever():
    stream = TextStream(decode)
    assert any(stream.push(0xFF) for _ in range(40))


def test_first_word_keeps_its_space():
    """Decoders of the SentencePiece kind drop the space of a text's first word; a completion is not
    a text's start."""
    words = ["Once", " upon", " a", " time"]
    stream = TextStream(lambda ids: "".join(words[i] for i in ids).lstrip(), context=[0])
    assert [stream.push(i) for i in (1, 2, 3)] == [" upon", " a", " time"]


@given(
    st.text(alphabet="ab", max_size=30),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1),
)
def test_stop_strings_cut_where_the_first_appears(text, stops):
    stream = TextStream(decode, stops)
    got = ""
    for byte in text.encode():
        got += stream.push(byte)
        assert not any(stop in got for stop in stops)
        if stream.stopped:
            break
    got += stream.finish()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (got, stream.stopped) == (text, False)
    else:
        seen = text[
            : min(ends)
        ]  # one character a token: the stop that is complete first ends the text
        assert stream.stopped
        assert got == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_held_text_is_shown_when_it_is_no_stop():
    assert shown(b"a\nUs.", stops=["\nUser:"]) == ["a", "", "", "", "\nUs.", ""]
