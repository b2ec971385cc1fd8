"""The plain C interface, which a torch below 2.10 uses, beside the stable ABI: the same bits."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.errors import BuildError
from nybble.ops import _native
from nybble.ops._c_interface import Library, parse
from tests.c_interface import other_library
from tests.cases import Case, all_cases
from tests.ops.test_cases import fresh


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    found = other_library(tmp_path_factory.mktemp("library"))
    if found is None:
        pytest.skip("no native library, or none that has the stable ABI beside the C interface")
    return found


def run(library: Library, op: str, *arguments: Any) -> Any:
    kernel = library.kernel(op, "CPU")
    assert kernel is not None
    return kernel(*arguments)


def everything(arguments: list[Any], returned: Any) -> list[bytes]:
    """All that a call may have written, bit for bit: NaN too."""
    results = returned if isinstance(returned, (tuple, list)) else [returned]
    tensors = [t for t in (*arguments, *results) if isinstance(t, Tensor)]
    return [t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_same_bits(case: Case, library: Library) -> None:
    stable, plain = fresh(case), fresh(case)
    expected = everything(stable, getattr(torch.ops.nybble, case.op)(*stable))
    assert everything(plain, run(library, case.op, *plain)) == expected


def test_layouts_that_take_a_copy(library: Library) -> None:
    x = torch.randn(6, 4, 8).permute(1, 0, 2)[::2]  # rows in no one stride
    assert torch.equal(
        run(library, "rms_norm", x, torch.ones(8), 1e-5),
        torch.ops.nybble.rms_norm(x, torch.ones(8), 1e-5),
    )
    capped = x.clone(memory_format=torch.preserve_format)
    run(library, "softcap_", capped, 0.5)
    expected = x.clone(memory_format=torch.preserve_format)
    torch.ops.nybble.softcap_(expected, 0.5)
    assert torch.equal(capped, expected)


def test_an_error_on_pythons_side_comes_back_as_itself(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(KeyboardInterrupt):
        run(library, "silu_mul", torch.ones(2, 8), torch.ones(2, 8))


def test_the_file_in_use_is_refused(library: Library) -> None:
    path = _native.ensure_loaded().path
    assert path is not None
    with pytest.raises(BuildError, match="in use through torch's stable ABI"):
        Library(path)


@pytest.fixture
def three_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def product(library: Library) -> bool:
    """Whether a product shared among threads is the one of the stable ABI."""
    a, b = torch.randn(40, 300), torch.randn(500, 300)
    return torch.equal(run(library, "matmul", a, b, None), torch.ops.nybble.matmul(a, b, None))


def test_callers_at_once_share_the_threads(library: Library, three_threads: None) -> None:
    right: list[bool] = []
    callers = [
        threading.Thread(target=lambda: right.extend(product(library) for _ in range(20)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert right == [True] * 80


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(library: Library, three_threads: None) -> None:
    a, b = torch.randn(40, 300), torch.randn(500, 300)
    expected = run(library, "matmul", a, b, None)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if torch.equal(run(library, "matmul", a, b, None), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_parse() -> None:
    assert parse(
        "(Tensor(a!) x, int[] steps, ScalarType? dtype=None, int n=-1, bool b=False) -> (Tensor, Tensor)"
    ) == (
        "Tl?sib",
        [None, -1, False],
        2,
    )
