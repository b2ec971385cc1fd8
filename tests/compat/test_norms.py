"""The old norms and soft cap: recorded calls, and calls that must be refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nybble.compat import exllamav2_ext as ext

ROOT = Path(__file__).resolve().parents[2]
ABSENT = torch.empty((1, 1), device="meta")


@pytest.mark.parametrize("family", ["norms"])
def test_recorded_calls(data: Path, family: str) -> None:
    tool, calls = data / "golden" / "replay.py", data / "golden" / "ext"
    done = subprocess.run(
        [sys.executable, tool, calls, "--device", "cpu", "--family", family, "--path", ROOT, "-v"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def half(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.float16)


# Arguments each function accepts.
SOUND: dict[str, list[Any]] = {
    "rms_norm": [half(2, 8), half(8), half(2, 8), 1e-5],
    "rms_norm_": [half(2, 8), half(8), 1e-5],
    "layer_norm": [half(2, 8), half(8), half(8), half(2, 8), 1e-5],
    "layer_norm_": [half(2, 8), half(8), half(8), 1e-5],
    "head_norm": [half(2, 3, 8), half(3, 8), half(3, 8), half(2, 3, 8), 1e-5, True],
    "head_norm_": [half(2, 3, 8), half(3, 8), half(3, 8), 1e-5, False],
    "softcap_": [half(2, 8), 30.0],
}


def wrong(value: Any) -> list[Any]:
    """What must be refused in place of ``value``."""
    if not isinstance(value, torch.Tensor):
        return [None, "1", ABSENT, -1.0 if not isinstance(value, bool) else 1]
    others = [value.to(t) for t in (torch.float64, torch.bfloat16, torch.int16, torch.int64)]
    smaller = [value.narrow(d, 0, 0) for d in range(value.dim())]
    return [
        None,
        1.0,
        *others,
        *smaller,
        value[..., :-1].contiguous(),
        value.unsqueeze(0)[..., None],
    ]


CALLS = [
    pytest.param(name, at, bad, id=f"{name}-{at}-{n}")
    for name, arguments in SOUND.items()
    for at, value in enumerate(arguments)
    for n, bad in enumerate(wrong(value))
    # In place, no rows are a sound call, and softcap_ takes any shape.
    if not (name.endswith("_") and at == 0 and n == 6)
    and not (name == "softcap_" and at == 0 and n > 6)
]


@pytest.mark.parametrize("name", SOUND)
def test_sound_arguments_are_accepted(name: str) -> None:
    arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in SOUND[name]]
    assert getattr(ext, name)(*arguments) is None


@pytest.mark.parametrize(("name", "at", "bad"), CALLS)
def test_one_wrong_argument_is_refused(name: str, at: int, bad: Any) -> None:
    arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in SOUND[name]]
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    arguments[at] = bad
    with pytest.raises((RuntimeError, TypeError)):
        getattr(ext, name)(*arguments)
    for i, (old, new) in enumerate(zip(before, arguments, strict=True)):
        assert i == at or not isinstance(old, torch.Tensor) or torch.equal(old, new)


def test_no_rows_and_gaps() -> None:
    ext.rms_norm_(half(0, 8), half(8), 1e-5)
    ext.head_norm_(half(0, 3, 8), half(3, 8), ABSENT, 1e-5, True)
    ext.softcap_(half(0), 1.0)
    with pytest.raises(RuntimeError, match="not contiguous"):
        ext.rms_norm_(half(2, 16)[:, ::2], half(8), 1e-5)


def test_half_input_is_held_to_the_finite_range_and_float_is_not() -> None:
    """The old kernels read NaN as 65504; a clean norm shows it, and so does the old one for float input."""
    x = torch.tensor([[1.0, torch.nan, -torch.inf, 1.0]])
    y = half(1, 4)
    ext.rms_norm(x.half(), half(4), y, 1e-5)
    assert torch.allclose(y, torch.tensor([[0.0, 2**0.5, -(2**0.5), 0.0]]).half(), atol=1e-3)
    ext.rms_norm(x, half(4), y, 1e-5)
    assert y.isnan().all()
