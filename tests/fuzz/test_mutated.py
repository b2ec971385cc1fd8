"""Mutated checkpoints end in a named error or in a sound reading, never in a crash or in memory
the file does not justify."""

from __future__ import annotations

import resource
import sys

import pytest

from tests.fuzz.mutate import ALLOWANCE, run


def resident() -> int:
    """Peak memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def test_some_mutated_checkpoints() -> None:
    run(seed=0, count=20)  # what loading once takes is not the mutants' doing
    before = resident()
    results = run(seed=1, count=600)
    assert results["FormatError"] > 200
    assert results["sound"] > 20, "mutants that are all refused at the door test nothing behind it"
    assert resident() - before < ALLOWANCE


@pytest.mark.slow
def test_twelve_thousand_mutated_checkpoints() -> None:
    results = run(seed=2, count=12_000)
    assert sum(results.values()) == 12_000
