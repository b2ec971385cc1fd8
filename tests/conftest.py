"""What every test may ask for: the recorded data, and a seed that is the same in each run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--max-elements",
        type=int,
        help="Leave out op cases whose tensors hold more numbers: under a sanitizer a kernel is a hundred times slower.",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limit = config.getoption("--max-elements")
    if limit is not None:
        left_out = [item for item in items if _elements(item) > limit]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _elements(item: pytest.Item) -> int:
    """Numbers in the tensors of an op case; 0 for any other test."""
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get("case") if callspec else None
    return sum(x.numel() for x in getattr(case, "args", ()) if torch.is_tensor(x))


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
