"""``nybble bench ops --device cuda``: the products, decode attention and every other op, beside floors and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from nybble.benchmarks import gpu_attention, gpu_device, gpu_matmul, gpu_ops
from nybble.benchmarks.gpu_cases import attention_target
from nybble.benchmarks.gpu_ceiling import measure_ceiling
from nybble.benchmarks.gpu_timing import LAUNCHES, REPLAYS, ROTATED_BYTES
from nybble.benchmarks.report import Report, Section, load_average
from nybble.errors import SettingError
from nybble.ops import _native

PARTS = ("matmul", "attention", "ops")


def run(parts: Sequence[str] = PARTS) -> Report:
    """Measure the ceilings, then ``parts``.

    Raises:
        SettingError: no GPU here, or a part that there is not.
    """
    wrong = [part for part in parts if part not in PARTS]
    if wrong:
        raise SettingError(f"part is {wrong[0]!r}, expected one of {', '.join(PARTS)}")
    gpu_device.check_device("cuda")
    load = load_average()
    torch.manual_seed(0)
    _native.ensure_loaded()
    ceiling = measure_ceiling()
    machine = gpu_device.device()
    sections, notes = [ceiling.section()], [*_notes()]
    if "matmul" in parts:
        sections.append(gpu_matmul.section(ceiling))
    if "attention" in parts and "paged_attention" not in gpu_ops.missing():
        rows = [attention_row(asdict(row)) for row in gpu_attention.run()]
        sections.append(Section("attention", "Decode attention, beside cuDNN on fp16", rows))
    if "ops" in parts:
        section, problems = gpu_ops.section()
        sections.append(section)
        notes += problems
    settings = {
        "parts": list(parts),
        "rotated_bytes": ROTATED_BYTES,
        "launches_at_least": LAUNCHES,
        "replays": REPLAYS,
    }
    return Report("gpu", settings, load, sections, notes, machine)


def attention_row(measured: dict[str, Any]) -> dict[str, Any]:
    """What ``gpu_attention`` measured, with its target.

    >>> row = attention_row({"case": "1x4096", "storage": "plain", "us": 7.5, "cudnn_us": 12.0})
    >>> row["target_us"], row["met"]
    (8.0, True)
    """
    batch, held = map(int, measured["case"].split("x"))
    limit = attention_target(batch, held, measured["storage"], measured["cudnn_us"] / 1e6)
    met = None if limit is None else measured["us"] <= limit * 1e6
    target = {"target_us": None if limit is None else limit * 1e6, "met": met}
    return {**measured, **target}


def _notes() -> list[str]:
    notes = [
        f"Medians of {REPLAYS} replays of a CUDA graph of at least {LAUNCHES} launches; weights take turns through "
        f"{ROTATED_BYTES >> 20} MiB. Floor: bytes over the best read above, or arithmetic over the fp16 product's rate."
    ]
    missing = gpu_ops.missing()
    if missing:
        notes.append(f"No CUDA kernel in this library, so not timed: {', '.join(missing)}.")
    return notes
