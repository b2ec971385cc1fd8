"""docs/install.md: the sections that error messages name are there, and its table is what the plan says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest

from nybble import errors
from nybble.build import cuda, matrix
from tools import gen_install_doc

ROOT = Path(__file__).resolve().parents[2]
PAGE = gen_install_doc.PAGE.read_text()


def anchors(page: str) -> set[str]:
    """The anchors GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "module", [errors, cuda, matrix, gen_install_doc], ids=lambda m: m.__name__
)
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_messages_name_sections_that_exist() -> None:
    named = {
        section
        for path in (ROOT / "nybble").rglob("*.py")
        for section in re.findall(r"""help_at\(['"]([\w-]+)['"]\)""", path.read_text())
    }
    assert {"no-compiler", "rocm", "which-command"} <= named <= anchors(PAGE)


@pytest.mark.parametrize(
    "path", [Path("docs/install.md"), Path("README.md"), Path("CONTRIBUTING.md")], ids=str
)
def test_links_lead_somewhere(path: Path) -> None:
    text = (ROOT / path).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, section = target.partition("#")
        if "://" in file:
            continue
        place = (ROOT / path).parent / file if file else ROOT / path
        assert place.exists(), target
        if section:
            assert section in anchors(place.read_text()), target


def test_the_table_is_what_the_plan_says() -> None:
    """Where this fails: python tools/gen_install_doc.py"""
    assert gen_install_doc.render(PAGE) == PAGE
    numbers = re.findall(r"^\| (\d+) (?:wheels?|sdist)", gen_install_doc.table(), re.MULTILINE)
    assert sum(map(int, numbers)) == 88


@pytest.mark.parametrize(
    ("driver", "made_with", "fits"),
    [
        ("580.65.06", "13.0", True),
        ("575.57", "13.0", False),
        ("575.57", "12.8", True),
        ("525.60.13", "12.8", True),
        ("470.10", "12.8", False),
        ("590.1", "12.8", True),
        (None, "13.0", True),
        ("", "13.0", True),
        ("575.57", "", True),
    ],
)
def test_drivers(driver: str | None, made_with: str, fits: bool) -> None:
    problem = cuda.driver_problem(driver, made_with)
    assert (problem is None) == fits
    if problem is not None:
        assert "docs/install.md#cuda-12-and-cuda-13" in problem
