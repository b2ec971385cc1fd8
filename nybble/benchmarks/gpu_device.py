"""The GPU a report comes from: name, driver, clocks, versions. Nothing is ever set."""

from __future__ import annotations

import csv
import subprocess
from typing import Any

import torch

from nybble.benchmarks.gpu_timing import Call, call_seconds
from nybble.errors import SettingError
from nybble.ops import _native

FIXED = {
    "gpu": "name",
    "driver": "driver_version",
    "max_sm_clock_MHz": "clocks.max.sm",
    "max_memory_clock_MHz": "clocks.max.memory",
    "power_limit_W": "power.limit",
}
BUSY = {
    "sm_clock_MHz": "clocks.sm",
    "memory_clock_MHz": "clocks.mem",
    "power_W": "power.draw",
    "temperature_C": "temperature.gpu",
}
BUSY_SECONDS = 0.5


def check_device(device: str) -> None:
    """
    Raises:
        SettingError: neither ``cpu`` nor ``cuda``, or no GPU here.
    """
    if device not in ("cpu", "cuda"):
        raise SettingError(f"--device is {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: PyTorch sees no CUDA GPU here; leave it out for the CPU")


def device() -> dict[str, Any]:
    """What ``nvidia-smi`` says, of clocks while memory is read and while the GPU multiplies, and what serves the ops."""
    state = _native.ensure_loaded()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    uuid = f"GPU-{properties.uuid}"
    data = torch.randn(1 << 28, device="cuda")
    a = data[: 1 << 26].view(8192, 8192).half()
    return {
        **ask_smi(uuid, FIXED),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_GB": properties.total_memory / 1e9,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "reading": _while_busy(data.sum, uuid),
        "multiplying": _while_busy(lambda: torch.mm(a, a), uuid),
        "ops": "native" if "CUDA" in _native.native_devices("rms_norm") else "reference",
        "library": state.info.get("hash"),
        "library_archs": state.info.get("cuda_archs"),
    }


def _while_busy(call: Call, uuid: str) -> dict[str, Any]:
    seconds = min(call_seconds(call, 3))
    for _ in range(int(BUSY_SECONDS / seconds)):  # queued: the calls return at once
        call()
    found = ask_smi(uuid, BUSY)
    torch.cuda.synchronize()
    return found


def ask_smi(uuid: str, asked: dict[str, str]) -> dict[str, Any]:
    """What ``nvidia-smi`` says of one GPU; empty where there is none that answers."""
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(asked.values())}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse(done.stdout.strip(), asked)


def parse(line: str, asked: dict[str, str]) -> dict[str, Any]:
    """One line of ``nvidia-smi --query-gpu``, numbers as numbers.

    >>> parse("1980, 3201, 510.25, 41", BUSY)["power_W"]
    510.25
    """
    (values,) = csv.reader([line], skipinitialspace=True)
    return {key: _number(value) for key, value in zip(asked, values, strict=True)}


def _number(text: str) -> str | float:
    """
    >>> _number("1980"), _number("[N/A]"), _number("580.95.05")
    (1980.0, '[N/A]', '580.95.05')
    """
    try:
        return float(text)
    except ValueError:
        return text
