"""Every recorded call of a family again with one argument wrong at a time: python -m tests.compat.walk DATA FAMILY

Prints how often each function was called so. A crash ends the process, which is what the test looks at.
"""

from __future__ import annotations

import collections
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# What an old caller may see. Anything else, such as an AttributeError, is a slip of ours.
EXPECTED = (RuntimeError, TypeError, ValueError, IndexError, OverflowError, MemoryError)
CALLS = 2  # recorded calls of one function that are varied
ABSENT = torch.empty((1, 1), device="meta")
NUMBERS = (-(1 << 63), -(1 << 31), -1, 0, 1, 7, (1 << 31) - 1, 1 << 64)


def wrong(value: Any) -> Iterator[Any]:
    """``value`` with one thing wrong, or merely unusual."""
    yield from (None, "text", object())
    if isinstance(value, Tensor):
        yield ABSENT
        yield from (
            value.to(t)
            for t in (torch.float16, torch.float64, torch.int32, torch.uint8)
            if not value.is_meta
        )
        yield value.new_zeros(())
        yield value.flatten()[:0]
        yield value.unsqueeze(0)
        for axis in range(value.dim()):
            yield value.narrow(axis, 0, 0)
            yield value.narrow(axis, 0, value.shape[axis] // 2)
            yield value.repeat_interleave(2, axis)
        if value.dim() > 1:
            yield value.transpose(0, -1)
        if not value.dtype.is_floating_point and value.dtype != torch.bool and not value.is_meta:
            limits = torch.iinfo(value.dtype)
            yield from (torch.full_like(value, n) for n in (limits.min, limits.max))
    elif isinstance(value, bool):
        yield from (0, 1.5)
    elif isinstance(value, int):
        yield from (*NUMBERS, 1.5, value + 1, value + 16)
    elif isinstance(value, float):
        yield from (float("nan"), float("inf"), -1.0, 0.0, True)
    elif isinstance(value, (list, tuple)):
        yield from ([], [*value, *value], [None] * len(value), 5)
        for at, item in enumerate(value[:3]):
            yield from ([*value[:at], bad, *value[at + 1 :]] for bad in wrong(item))


def copied(value: Any) -> Any:
    """Tensors of their own, so that no call spoils the next."""
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.preserve_format)
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value


class Walker:
    """Stands in for an old module: each function is first called with wrong arguments, then as recorded."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.calls, self.count = (
            module,
            collections.Counter[str](),
            collections.Counter[str](),
        )

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            if self.calls[name] <= CALLS:
                for at in range(len(arguments)):
                    if name.startswith(
                        "free_"
                    ):  # a good handle would be gone for the calls that follow
                        variants: Iterator[Any] = iter((None, "text", -1, 7, arguments[at] + 1))
                    else:
                        variants = wrong(arguments[at])
                    for bad in variants:
                        self.count[name] += 1
                        given = [copied(bad if i == at else a) for i, a in enumerate(arguments)]
                        try:
                            function(*given)
                        except EXPECTED:
                            pass
            return function(*arguments, **named)

        return call


def walk(data: Path, family: str) -> dict[str, int]:
    """Number of wrong calls of each function."""
    spec = importlib.util.spec_from_file_location("replay", data / "golden" / "replay.py")
    assert spec is not None and spec.loader is not None
    replay = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(replay)
    meta = json.loads((data / "golden" / "ext" / f"{family}.json").read_text())
    store = replay.load_tensors(str(data / "golden" / "ext" / meta["data"]))
    walker = Walker(importlib.import_module(f"nybble.compat.{meta['module']}"))
    with torch.no_grad():
        for case in meta["cases"]:
            names = {step.get("call") for step in case["steps"]} - {None}
            if any(walker.calls[name] < CALLS for name in names):
                message = replay.run_case(case, store, meta.get("tolerances", {}), walker, "cpu")
                assert message is None, f"{case['id']}: {message}"
    return dict(walker.count)


if __name__ == "__main__":
    print(json.dumps(walk(Path(sys.argv[1]), sys.argv[2])))
