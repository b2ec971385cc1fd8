"""A benchmark's result: times and rates, the machine they come from, as JSON and as tables."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nybble.ops import _native

SAMPLE_SECONDS = 1e-3  # calls shorter than this are timed several at once
PACKAGES = ("nybble", "torch", "onnxruntime", "llama-cpp-python")


@dataclass(frozen=True)
class Times:
    """Seconds a call: the middle one and the least. Other programs on the machine raise the first
    more than the second."""

    median: float
    fastest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Of single measurements.

        >>> Times.of([3.0, 1.0, 2.0])
        Times(median=2.0, fastest=1.0)
        """
        return cls(statistics.median(seconds), min(seconds))


def measure(call: Callable[[], object], seconds: float) -> Times:
    """Call again and again for about ``seconds``, after one call that is not counted."""
    started = time.perf_counter()
    call()
    if time.perf_counter() - started < SAMPLE_SECONDS:  # the first call may have been slow to start
        started = time.perf_counter()
        call()
    at_once = max(1, int(SAMPLE_SECONDS / max(time.perf_counter() - started, 1e-9)))
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        for _ in range(at_once):
            call()
        taken.append((time.perf_counter() - started) / at_once)
    return Times.of(taken)


def giga(amount: float, seconds: float) -> float:
    """``amount`` a second, in units of 1e9.

    >>> giga(4e9, 2.0)
    2.0
    """
    return amount / seconds / 1e9


@contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Run with this many threads, PyTorch's own number for None; the number before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)


def load_average() -> float | None:
    """Programs that wanted a core in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def device() -> dict[str, Any]:
    """The CPU, its cores, and what serves the ops."""
    state = _native.ensure_loaded()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "ops": "native" if state.path is not None else "reference",
        "cpu_isa": _native.cpu_isa(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python, and of each package that takes part and is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Section:
    """One table: rows with the same keys, the key naming the unit."""

    name: str  # key in the JSON
    title: str
    rows: list[dict[str, Any]]


def command(arguments: Sequence[str]) -> str:
    """What was typed, to type it again elsewhere: a file of this machine is its name alone.

    >>> command(["bench", "ops", "--out", "/home/me/ops.json"])
    'nybble bench ops --out ops.json'
    """
    return shlex.join(
        ["nybble", *(Path(a).name if Path(a).is_absolute() else a for a in arguments)]
    )


@dataclass(frozen=True)
class Report:
    """One run of one benchmark."""

    benchmark: str
    settings: dict[str, Any]
    load: float | None  # when it started
    sections: list[Section]
    notes: list[str]
    device: dict[str, Any] = field(default_factory=device)

    def record(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "benchmark": self.benchmark,
            "command": command(sys.argv[1:]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": self.device,
            "versions": versions(),
            "load_average": self.load,
            "settings": self.settings,
            **{section.name: section.rows for section in self.sections},
            "notes": self.notes,
        }

    def print(self) -> None:
        """Tables on standard output."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        console.print(
            f"{headline(self.device)}, torch {torch.__version__}, load average at start {self.load}",
            soft_wrap=True,
        )
        for section in filter(lambda section: section.rows, self.sections):
            table = Table(title=section.title, title_justify="left", box=None, pad_edge=False)
            for name in section.rows[0]:
                table.add_column(name.replace("_", " "), justify="right")
            for row in section.rows:
                table.add_row(*map(_cell, row.values()))
            console.print(table)
        for note in self.notes:
            console.print(note, soft_wrap=True)


def headline(device: dict[str, Any]) -> str:
    """The machine in words.

    >>> headline({"cpu": "Xeon", "cores": 2, "ops": "native", "cpu_isa": "avx512"})
    'Xeon, 2 cores, native ops (avx512)'
    >>> busy = {"reading": {"sm_clock_MHz": 1980.0}, "multiplying": {"sm_clock_MHz": 1440.0}}
    >>> headline({"gpu": "H200", "ops": "native", "library_archs": ["90a-real"], **busy})
    'H200, native ops (90a-real), SM clock 1980.0 MHz reading, 1440.0 MHz multiplying'
    """
    if "gpu" in device:
        archs = ", ".join(device["library_archs"] or ["PyTorch"])
        clocks = ", ".join(
            f"{device[busy].get('sm_clock_MHz', 'unknown')} MHz {busy}"
            for busy in ("reading", "multiplying")
        )
        return f"{device['gpu']}, {device['ops']} ops ({archs}), SM clock {clocks}"
    isa = device["cpu_isa"] or "PyTorch"
    return f"{device['cpu']}, {device['cores']} cores, {device['ops']} ops ({isa})"


def _cell(value: Any) -> str:
    """Three digits that count.

    >>> [_cell(x) for x in (0.01234, 12.34, 1234.5, 7, None, True)]
    ['0.0123', '12.3', '1,234', '7', '-', 'yes']
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
