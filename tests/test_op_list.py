"""Each op has its five parts: schema, wrapper with fake, reference, CPU kernel, CUDA kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nybble import ops
from nybble.ops import _schema
from nybble.ops.reference import IMPLEMENTATIONS
from tests.cases import all_cases

ROOT = Path(__file__).resolve().parents[1]
OPS = sorted(_schema.SCHEMAS)


@pytest.mark.parametrize("op", OPS)
def test_wrapper(op: str) -> None:
    assert op in ops.__all__ and (getattr(ops, op).__doc__ or "").strip()


@pytest.mark.parametrize("op", OPS)
def test_fake(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"nybble::{op}", "Meta") or (
        torch._library.simple_registry.singleton.find(f"nybble::{op}").fake_impl.kernel is not None
    )


def test_references_are_those_of_the_list() -> None:
    assert sorted(IMPLEMENTATIONS) == OPS


@pytest.mark.parametrize("op", OPS)
def test_cases_exist(op: str) -> None:
    assert any(case.op == op for case in all_cases())


@pytest.mark.parametrize("key", ["CPU", "CUDA"])
def test_kernels_are_registered(key: str) -> None:
    """Read from the binding's source, so that a machine without a compiler or a GPU can tell too."""
    text = (ROOT / "csrc" / "binding" / "library.cpp").read_text()
    block = text.split(f"void {key.lower()}_ops")[1].split("\n}\n")[0]
    assert [op for op in OPS if f'"{op}"' not in block] == []


def test_the_op_table_is_current() -> None:
    import runpy

    tool = runpy.run_path(str(ROOT / "tools" / "gen_ops_doc.py"))
    assert (ROOT / "docs" / "ops.md").read_text() == tool["render"](), (
        "run: python tools/gen_ops_doc.py"
    )
