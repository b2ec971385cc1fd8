"""What a checkpoint's JSON files say: config.json and the quantization settings inside or beside
it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nybble.errors import FormatError

GROUP_CAP = 1 << 20
JSON_CAP = 2 << 20  # bytes of a configuration file
PARSED_CAP = 64 << 20  # bytes that a file may take beyond its own size when it is parsed
NODE_BYTES = 128  # of memory for each of { [ , : at most

REFUSED = {
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "exl3": "EXL3",
    "gguf": "GGUF",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "quanto": "Quanto",
    "torchao": "torchao",
    "eetq": "EETQ",
    "mxfp4": "MXFP4",
    "modelopt": "ModelOpt",
    "higgs": "HIGGS",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "bitnet": "BitNet",
    "quark": "Quark",
    "auto-round": "AutoRound",
    "auto_round": "AutoRound",
}


@dataclass(frozen=True)
class QuantConfig:
    """The settings of a quantized checkpoint that decide how its tensors are read."""

    method: str  # "exl2", "gptq" or "awq"
    bits: float | None = None  # EXL2: the average that was aimed at
    group_size: int | None = None  # -1: one group
    checkpoint_format: str = (
        ""  # GPTQ: "gptq_v2" stores the zero itself, all else the zero minus one
    )
    version: str = ""  # AWQ: "gemm", "gemv", "gemv_fast"
    backend: str = ""
    not_converted: tuple[str, ...] = ()  # module name parts left as floating point


def read_json(path: Path, cap: int = JSON_CAP) -> dict[str, Any]:
    """The JSON object in ``path``; raises FormatError when it is none, or longer than ``cap``
    bytes."""
    try:
        with open(path, "rb") as file:
            text = file.read(cap + 1)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if len(text) > cap:
        raise FormatError(f"{path}: expected at most {cap} bytes of JSON, got more.")
    nodes = sum(text.count(sign) for sign in (b"{", b"[", b",", b":"))
    # A text outside ASCII is kept in up to four bytes a character, twice while it is parsed.
    copies = 1 if text.isascii() and b"\\u" not in text else 8
    if nodes * NODE_BYTES + copies * len(text) > PARSED_CAP:
        raise FormatError(
            f"{path}: its {len(text)} bytes of JSON would take more than {PARSED_CAP >> 20} MiB when parsed; "
            "no model's file is like that."
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: expected JSON in UTF-8; {error}.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def read_quant_config(folder: Path, config: Mapping[str, Any]) -> QuantConfig | None:
    """Quantization settings from ``config``, else ``quantize_config.json`` (GPTQ), else
    ``quant_config.json`` (AWQ).

    Returns None for an unquantized checkpoint. Raises FormatError, by name, for a method nybble
    does not read.
    """
    where, raw, method = "config.json quantization_config", config.get("quantization_config"), ""
    if raw is None:
        for name, kind in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
            if (folder / name).is_file():
                where, raw, method = name, read_json(folder / name), kind
                break
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise FormatError(f"{where}: expected an object, got {type(raw).__name__}.")
    return _parse(where, raw, method)


def _parse(where: str, raw: Mapping[str, Any], fallback: str) -> QuantConfig:
    method = str(raw.get("quant_method") or fallback).lower()
    if method in REFUSED:
        raise FormatError(
            f"{where}: this checkpoint is quantized with {REFUSED[method]}, which nybble does not "
            "read; "
            "use an EXL2, GPTQ, AWQ or unquantized safetensors version of the model."
        )
    if method not in ("exl2", "gptq", "awq"):
        raise FormatError(f"{where}: expected quant_method exl2, gptq or awq, got {method[:80]!r}.")
    bits = raw.get("bits", raw.get("w_bit"))
    if bits is not None and (type(bits) not in (int, float) or not 0 < bits <= 32):
        raise FormatError(
            f"{where}: expected bits to be a number of 0 to 32, got {str(bits)[:80]}."
        )
    widths = {"gptq": (2, 3, 4, 8), "awq": (4,)}.get(method)
    if widths and bits is not None and bits not in widths:
        raise FormatError(
            f"{where}: expected {method} bits of {', '.join(map(str, widths))}, got {bits}."
        )
    group = raw.get("group_size", raw.get("q_group_size"))
    if group is not None and (
        type(group) is not int or not (group == -1 or 1 <= group <= GROUP_CAP)
    ):
        raise FormatError(
            f"{where}: expected group_size to be -1 or 1 to {GROUP_CAP}, got {str(group)[:80]}."
        )
    skipped = raw.get("modules_to_not_convert") or ()
    if not isinstance(skipped, (list, tuple)) or not all(isinstance(name, str) for name in skipped):
        raise FormatError(
            f"{where}: expected modules_to_not_convert to be a list of names, got "
            f"{str(skipped)[:80]}."
        )
    return QuantConfig(
        method=method,
        bits=bits,
        group_size=group,
        checkpoint_format=_text(where, raw, "checkpoint_format"),
        version=_text(where, raw, "version"),
        backend=_text(where, raw, "backend"),
        not_converted=tuple(skipped),
    )


def _text(where: str, raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key) or ""
    if not isinstance(value, str):
        raise FormatError(f"{where}: expected {key} to be text, got {str(value)[:80]}.")
    return value.lower()
