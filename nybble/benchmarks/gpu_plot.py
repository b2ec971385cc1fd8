"""A plot of the quantized product: time against the floor by number of rows, one panel a matrix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nybble.benchmarks.report import Report
from nybble.errors import SettingError

LINES = {
    "nybble, 4 bits": ("us", "o-"),
    "floor": ("floor_us", "k--"),
    "cuBLAS, fp16": ("cublas_us", "s-"),
    "PyTorch int4pack": ("int4pack_us", "^-"),
    "Marlin (vLLM)": ("marlin_us", "v-"),
    "ExLlamaV2": ("exllamav2_us", "x-"),
}
Rows = list[dict[str, Any]]


def panels(rows: Iterable[dict[str, Any]]) -> dict[tuple[int, int], Rows]:
    """The rows of 4 bits by K and N.

    >>> panels([{"weight": "4 bits", "K": 1, "N": 2, "M": 1}, {"weight": "3 bits", "K": 1, "N": 2, "M": 1}])
    {(1, 2): [{'weight': '4 bits', 'K': 1, 'N': 2, 'M': 1}]}
    """
    found: dict[tuple[int, int], Rows] = {}
    for row in rows:
        if row["weight"] == "4 bits":
            found.setdefault((row["K"], row["N"]), []).append(row)
    return found


def line(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """M and microseconds, where they were measured.

    >>> line([{"M": 1, "us": 5.0}, {"M": 2, "us": None}], "us")
    ([1], [5.0])
    """
    kept = [row for row in rows if row[key] is not None]
    return [row["M"] for row in kept], [row[key] for row in kept]


def check_plot(path: Path) -> None:
    """Before the minutes of measuring: matplotlib is there.

    Raises:
        SettingError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise SettingError(f"--plot {path} needs matplotlib: pip install 'nybble[plots]'")


def save(report: Report, path: Path) -> None:
    """Write the picture, in the format of its suffix."""
    from matplotlib.figure import Figure

    (rows,) = [section.rows for section in report.sections if section.name == "qmatmul"]
    shapes = panels(rows)
    figure = Figure(figsize=(5 * len(shapes), 4.5), layout="constrained")
    for axes, ((K, N), cases) in zip(
        figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0], shapes.items(), strict=True
    ):
        for label, (key, style) in LINES.items():
            rows_of_line, times = line(cases, key)
            if times:
                axes.loglog(rows_of_line, times, style, label=label, markersize=4)
        axes.set(title=f"{K} × {N}", xlabel="rows (M)", ylabel="microseconds")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"[M, K] @ [K, N], 4 bits, group 128, {report.device['gpu']}")
    figure.savefig(path)
