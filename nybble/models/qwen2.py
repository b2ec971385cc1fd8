"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window in the upper layers if
asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nybble.models.llama import NAMES
from nybble.models.registry import Architecture, Biases


def _biases(config: Mapping[str, Any]) -> Biases:
    """On q, k and v, always."""
    return Biases(qkv=True)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """``layer_types`` where given, else ``sliding_window`` from ``max_window_layers`` up; only if
    ``use_sliding_window``."""
    window = (
        (config.get("sliding_window", 4096) or 0) if config.get("use_sliding_window", False) else 0
    )
    types = config.get("layer_types")
    if types is not None:
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    first = config.get("max_window_layers", 28)
    return tuple(window if i >= first else 0 for i in range(layers))


ARCHITECTURE = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    names=NAMES,
    max_positions=32768,
    biases=_biases,
    windows=_windows,
)
