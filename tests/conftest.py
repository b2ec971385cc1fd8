"""What every test may ask for: the recorded data, and a seed that is the same in each run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder with ``corpus/``, ``demo-model/`` and ``golden/``, from ``NYBBLE_TEST_DATA``."""
    value = os.environ.get("NYBBLE_TEST_DATA")
    if not value:
        pytest.skip("NYBBLE_TEST_DATA is not set: the recorded checkpoints and texts are not here")
    folder = Path(value)
    assert folder.is_dir(), f"NYBBLE_TEST_DATA={value} is not a folder"
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, so a failure can be seen again."""
    torch.manual_seed(0)
