"""Every op against float64, on the native kernels and on the reference: the table in tests/cases.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nybble import ops
from nybble.ops import _native, _schema
from nybble.ops.packed import PackedMatrix
from nybble.ops.reference import IMPLEMENTATIONS
from tests.cases import Case, all_cases

CASES = all_cases()
# Where the C++ compiler is missing the ops run on the reference, and only that is tested.
NATIVE = _native.ensure_loaded().path is not None


def fresh(case: Case) -> list[Any]:
    """Arguments of their own for each run, views kept views."""
    return [
        a.clone(memory_format=torch.preserve_format)
        if torch.is_tensor(a) and case.op.endswith("_")
        else a
        for a in case.args
    ]


def first(case: Case) -> Tensor:
    return case.expected[0] if isinstance(case.expected, tuple) else case.expected


def check(case: Case, args: list[Any], returned: Any) -> None:
    results, expected, bound = (
        list(x) if isinstance(x, (tuple, list)) else [x]
        for x in (() if returned is None else returned, case.expected, case.bound)
    )
    got = [*(args[i] for i in case.written if case.op.endswith("_")), *results]
    bounds = bound * len(expected) if len(bound) == 1 else bound
    for one, want, within in zip(got, expected, bounds, strict=True):
        check_tensor(one.cpu(), want, within)


def check_tensor(got: Tensor, expected: Tensor, bound: Tensor | float) -> None:
    assert got.shape == expected.shape
    if expected.dtype == torch.int64:
        assert got.tolist() == expected.tolist()
        return
    error = (got.double() - expected).abs()
    wrong = ~(error <= bound)  # NaN is wrong too
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} beyond the bound, worst {float(error.max()):.3g}"
    )


@pytest.mark.skipif(not NATIVE, reason="no native library: no C++ compiler on this machine")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native(case: Case) -> None:
    args = fresh(case)
    got = getattr(torch.ops.nybble, case.op)(*args)
    check(case, args, got)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case: Case) -> None:
    args = fresh(case)
    got = IMPLEMENTATIONS[case.op](*args)
    check(case, args, got)


def on_gpu(case: Case) -> list[Any]:
    """Arguments there: views stay views, a packed matrix takes the GPU's order of tiles."""
    args = fresh(case)
    at, size = {"qmatmul": (1, args[0].shape[-1]), "dequantize": (0, 0)}.get(case.op, (None, 0))
    keep: set[int] = set()
    if at is not None:
        weight, scales, zeros, perm, blocks = args[at : at + 5]
        N = args[7] if case.op == "qmatmul" else args[6]
        matrix = PackedMatrix(size, N, weight, scales, blocks, zeros, perm).to("cuda")
        args[at] = matrix.weight
        keep = {at, at + 4}  # the block table stays on the CPU
    return [
        move(a, "cuda") if torch.is_tensor(a) and i not in keep else a for i, a in enumerate(args)
    ]


def move(t: Tensor, device: str) -> Tensor:
    """``t.to(device)`` with the same strides and storage offset, or the kernels would see no views."""
    storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())  # type: ignore[call-overload]
    moved = storage.to(device)
    return moved.as_strided(t.shape, t.stride(), t.storage_offset())


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu(case: Case) -> None:
    args = on_gpu(case)
    got = getattr(torch.ops.nybble, case.op)(*args)
    check(case, args, got)


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch has opcheck from 2.4 on")
@pytest.mark.parametrize("op", sorted(_schema.SCHEMAS))
def test_opcheck(op: str) -> None:
    """Schema, fake and autograd registration agree with what the op does."""
    case = next(c for c in CASES if c.op == op and first(c).numel() > 0)
    torch.library.opcheck(getattr(torch.ops.nybble, op).default, tuple(fresh(case)))


@pytest.mark.skipif(not NATIVE, reason="no native library: no C++ compiler on this machine")
def test_every_op_is_native_on_the_cpu() -> None:
    """A library that registers nothing would load, and every other test here would pass on the reference."""
    assert [op for op in _schema.SCHEMAS if "CPU" not in _native.native_devices(op)] == []


@pytest.mark.parametrize("act_bits", [16, 32])
def test_a_row_does_not_depend_on_its_batch(act_bits: int) -> None:
    case = next(c for c in CASES if c.name == f"mixed-odd-zeros-perm-bias-m150-a{act_bits}")
    many = torch.ops.nybble.qmatmul(*case.args)
    if not NATIVE:
        pytest.skip("the reference multiplies with torch, which promises no such thing")
    for row in (0, 77, 149):
        alone = torch.ops.nybble.qmatmul(case.args[0][row : row + 1], *case.args[1:])
        assert torch.equal(alone[0], many[row])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("act_bits", [8, 16, 32])
def test_what_is_not_finite_stays_visible(value: float, act_bits: int) -> None:
    case = next(c for c in CASES if c.name == f"w4-m5-a{act_bits}")
    x = case.args[0].clone()
    x[2, 40] = value
    y = torch.ops.nybble.qmatmul(x, *case.args[1:])
    assert not y[2].isfinite().any()
    assert y[[0, 1, 3, 4]].isfinite().all()


def test_act_bits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from nybble.errors import SettingError
    from tests.cases.qmatmul import random_packed

    m, x = random_packed(64, 16, [4]), torch.randn(2, 64)
    monkeypatch.setenv("NYBBLE_ACT_BITS", "32")
    assert torch.equal(ops.qmatmul(x, m), ops.qmatmul(x, m, act_bits=32))
    monkeypatch.setenv("NYBBLE_ACT_BITS", "7")
    with pytest.raises(SettingError, match="NYBBLE_ACT_BITS"):
        ops.qmatmul(x, m)
