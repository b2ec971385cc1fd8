"""Sampling parameters: what is refused, and how."""

from __future__ import annotations

import pytest

from nybble.errors import RequestError
from nybble.generator.request import SamplingParams


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 1.5, "at least 1"),
        ("max_tokens", True, "at least 1"),
        ("temperature", -0.1, r"0\.\.100"),
        ("temperature", float("nan"), r"0\.\.100"),
        ("temperature", "warm", r"0\.\.100"),
        ("top_k", -1, "at least 0"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("min_p", -0.5, r"0\.\.1 "),
        ("min_p", 2, r"0\.\.1 "),
        ("repetition_penalty", 0, "above 0"),
        ("repetition_penalty", float("inf"), "above 0"),
        ("seed", 0.5, "an integer or None"),
        ("stop", ["a", ""], "not empty"),
        ("stop", [3], "a string or a list"),
    ],
)
def test_out_of_range(name, value, text):
    with pytest.raises(RequestError, match=f"{name} is .*{text}"):
        SamplingParams(**{name: value})


def test_stops_are_a_tuple():
    assert SamplingParams().stops == ()
    assert SamplingParams(stop="a").stops == ("a",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")
