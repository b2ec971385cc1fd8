"""Perplexity of recorded checkpoints on 20 windows of held-out text, as measured on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble.generator.tokenizer import Tokenizer
from nybble.models.loader import load_model
from nybble.quantize import data as texts
from nybble.quantize.measure import measure


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    ("folder", "perplexity"), [("demo-model", 23.394), ("golden/exl2-4.0bpw", 23.806)]
)
def test_perplexity(data: Path, folder: str, perplexity: float) -> None:
    reader = Tokenizer.from_folder(data / "demo-model")
    stream = texts.tokens(
        texts.documents(data / "corpus" / "heldout.txt.xz"),
        lambda text: reader.encode(text, special=False),
        reader.bos,
    )
    result = measure(load_model(data / folder), texts.windows(stream, 1024, 20))
    assert result.perplexity == pytest.approx(perplexity, abs=0.02)
