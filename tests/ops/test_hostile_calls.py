"""Every op called directly with arguments no wrapper would pass: an error or a result, never a
crash. Each op runs in a process of its own, so that a crash is one failed test. The same calls go
through the plain C interface, which says the same."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.ops._schema import SCHEMAS
from tests.c_interface import other_library

INTS = (-(1 << 63), -1, 0, 1, 7, 1 << 31, (1 << 63) - 1)
INDICES = (-(1 << 31), -2, 1 << 20, (1 << 31) - 1)


def sound(op: str) -> list[Any]:
    """Arguments the op accepts."""
    f, i = torch.ones, torch.zeros
    half = torch.float16
    made: dict[str, list[Any]] = {
        "qmatmul": [f(2, 32), i(256, dtype=torch.uint8), f(1, 1, 16, dtype=half), None,
                    torch.arange(32, dtype=torch.int32), torch.tensor([[4, 0]], dtype=torch.int32), None, 16, 32,
                    f(32), 1e-5, -1, f(2, 16)],
        "dequantize": [i(256, dtype=torch.uint8), f(1, 1, 16, dtype=half), None, torch.arange(32, dtype=torch.int32),
                       torch.tensor([[4, 0]], dtype=torch.int32), 32, 16, torch.float32],
        "matmul": [f(2, 8), f(4, 8), f(4)],
        "rms_norm": [f(2, 8), f(8), 1e-5, half],
        "layer_norm": [f(2, 8), f(8), f(8), 1e-5, half],
        "rms_norm_": [f(2, 3, 8), f(3, 8), 1e-5],
        "layer_norm_": [f(2, 3, 8), f(3, 8), f(3, 8), 1e-5],
        "softcap_": [f(2, 8), 3.0],
        "kv_quantize_": [i(2, 4, 2, 16, dtype=torch.uint8), i(2, 4, 2, 1, dtype=half), f(2, 4, 2, 32, dtype=half),
                         torch.tensor([[0, 3], [5, 8]]), 4],
        "kv_dequantize_": [f(2, 4, 2, 32, dtype=half), i(2, 4, 2, 32, dtype=torch.uint8), f(2, 4, 2, 1, dtype=half),
                           torch.tensor([[0, 3], [5, 8]]), 8],
        "fp8_encode_": [i(2, 8, dtype=torch.uint8), f(2, 8, dtype=half)],
        "fp8_decode_": [f(2, 8, dtype=half), i(2, 8, dtype=torch.uint8)],
        "rope_": [f(1, 2, 2, 8), f(4, 4), f(4, 4), i(1, 2, dtype=torch.int64), True],
        "attention": [f(1, 2, 4, 8), f(1, 3, 2, 8), f(1, 3, 2, 8), torch.tensor([3]), 0.5, True, 0],
        "cached_attention_": [f(1, 2, 64), f(4, 4), f(4, 4), i(1, 2, dtype=torch.int64), True,
                              f(1, 2, 5, 8), f(1, 2, 5, 8), torch.tensor([4]), 0.5, 0],
        "silu_mul": [f(2, 8), f(2, 8)],
        "gelu_mul": [f(2, 8), f(2, 8), True],
        "moe_route": [f(2, 8), 2, True],
        "embedding": [i(2, dtype=torch.int64), f(4, 8), torch.float32],
        "sample": [f(2, 8), f(2), f(2, dtype=torch.int64), f(2), i(2), i(2)],
        "quantize_columns": [f(2, 8), f(8), 8, 15],
        "quantize_error": [f(2, 8), f(8), f(3), 8, 15, 3.5],
        "gptq_group_": [f(4, 8), i(2, 8, dtype=torch.uint8), i(2, 8), torch.eye(4), f(8), 8, 15],
        "anneal_knapsack": [f(4, dtype=torch.int64), f(4, dtype=torch.float64), torch.tensor([0, 1, 4]), 5,
                            f(2, dtype=torch.float64), 10, 1],
        "quantize_int8": [f(2, 8)],
        "layer_norm_int8": [f(2, 8), f(8), f(8), 1e-5],
        "int8_matmul": [f(2, 8, dtype=torch.int8), f(2), f(4, 8, dtype=torch.int8), f(4), f(4), torch.float32],
        "decode_attention": [f(2, 4, 8), f(2, 2, 2, 3, 4), f(2, 2, 3, 8), torch.tensor([3, 5]), f(4), 0.5],
        "paged_attention": [f(2, 1, 4, 64, dtype=half), i(3, 4, 2, 64, dtype=torch.uint8), i(3, 4, 2, 32, dtype=torch.uint8),
                            f(3, 4, 2, 2, dtype=half), f(3, 4, 2, 2, dtype=half),
                            torch.tensor([[2, 0], [1, 1]], dtype=torch.int32), torch.tensor([7, 3]), f(4), 0.5, 0, 0.0,
                            False],
        "sample_chain": [f(2, 8), f(2), f(2, 8, dtype=torch.bool), f(8, dtype=torch.bool),
                         [0, 5, 10, 11, 12], f(2, 7), i(2), 3],
        "repetition_penalty_": [f(2, 8), i(2, 3, dtype=torch.int64), f(2), f(2), f(2), 1, 2],
    }  # fmt: skip
    return made[op]


def hostile(t: Tensor) -> Iterator[Tensor]:
    """The same tensor with one thing wrong, or merely unusual."""
    for dtype in (torch.float16, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool):
        yield t.to(dtype)
    yield t.to("meta")
    yield t.new_zeros(())
    yield t.unsqueeze(0)
    yield t.flatten()
    for axis in range(t.dim()):
        yield t.narrow(axis, 0, 0)
        yield t.repeat_interleave(2, axis)
        yield t.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
        yield t.narrow(axis, 0, 1).expand_as(t)
        yield t.transpose(axis, -1)
    if t.dtype.is_floating_point:
        for value in (float("nan"), float("inf"), -float("inf"), -1.0):
            yield torch.full_like(t, value)
    elif t.dtype == torch.bool:
        yield ~t
    else:
        limits = torch.iinfo(t.dtype)
        for index in (*INDICES, limits.min, limits.max):
            if limits.min <= index <= limits.max:
                for every in (True, False):
                    bad = t.clone()
                    bad.view(-1)[slice(None) if every else -1] = index
                    yield bad


def variants(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield from hostile(value)
    elif isinstance(value, torch.dtype):
        yield from (torch.float64, torch.int32, torch.bool, torch.complex64)
    elif isinstance(value, float):
        yield from (float("nan"), float("inf"), -1.0)
    elif type(value) is int:
        yield from INTS
    elif isinstance(value, list):
        yield from ([], value * 2, *([one] for one in INTS))


def attempt(function: Callable[..., Any], arguments: list[Any]) -> str:
    """The text of the error that a call ends with."""
    try:
        function(*arguments)
    except (RuntimeError, NotImplementedError) as error:
        return str(error)
    return ""


def batch(op: str, folder: Path) -> int:
    """Every variant of every argument alone, then all tensors with the same thing wrong."""
    library = other_library(folder)
    through_c = None if library is None else library.kernel(op, "CPU")
    function, count = getattr(torch.ops.nybble, op), 0
    calls: list[list[Any]] = []
    for at, value in enumerate(sound(op)):
        calls += [sound(op)[:at] + [bad] + sound(op)[at + 1 :] for bad in variants(value)]
    columns = [list(hostile(a)) if isinstance(a, Tensor) else [a] for a in sound(op)]
    longest = max(map(len, columns))
    calls += [[c[n % len(c)] for c in columns] for n in range(longest)]
    pairs = itertools.combinations([c for c in columns if len(c) > 1], 2)
    calls += [
        [a if c is one else b if c is two else c[0] if len(c) == 1 else s for c, s in zip(columns, sound(op), strict=True)]
        for one, two in pairs for a, b in zip(one[7:], two[7:], strict=False)
    ]  # fmt: skip
    function(*sound(op))
    for arguments in calls:
        wrong = attempt(function, arguments)
        if through_c is not None:
            again = attempt(through_c, arguments)
            # Torch itself refuses some calls before the op sees them.
            assert again == wrong or not wrong.startswith(f"{op}: "), (wrong, again)
        count += 1
    return count


@pytest.mark.parametrize("op", list(SCHEMAS))
def test_hostile_calls(op: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.test_hostile_calls", op, str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{op}: status {done.returncode}\n{done.stderr[-3000:]}"
    assert int(done.stdout) > 20


if __name__ == "__main__":
    print(batch(sys.argv[1], Path(sys.argv[2])))
