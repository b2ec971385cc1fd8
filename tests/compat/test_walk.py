"""Wrong arguments of every old function: an exception or a result, never a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat import test_block_arguments
from tests.compat.test_complete import AWQ, EXLLAMAV2

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = [
    "attn",
    "awq_attn",
    "awq_gemm",
    "awq_misc",
    "cache",
    "hadamard",
    "loader",
    "mlp",
    "norms",
    "qmatrix",
    "quantize",
    "rope",
    "sampling",
]
WITHOUT_ARGUMENTS = {"dump_profile_results", "set_flash_attn_func"}
walked: set[str] = set()


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_calls_gone_wrong(data: Path, family: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.compat.walk", data, family],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert all(count >= 10 for count in counts.values())
    walked.update(counts)


def test_no_function_was_left_out(data: Path) -> None:
    """What was never recorded has its wrong arguments in test_block_arguments."""
    if not walked:
        pytest.skip("runs after the test above")
    covered = walked | test_block_arguments.sound().keys() | WITHOUT_ARGUMENTS
    assert sorted(set(EXLLAMAV2 + AWQ) - covered) == []
