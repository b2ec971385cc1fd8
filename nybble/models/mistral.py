"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nybble.models.llama import NAMES
from nybble.models.registry import Architecture, Biases


def _biases(config: Mapping[str, Any]) -> Biases:
    """None anywhere."""
    return Biases()


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """``sliding_window`` in all layers; null is none, and a config without the key means 4096."""
    return (config.get("sliding_window", 4096) or 0,) * layers


ARCHITECTURE = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    names=NAMES,
    max_positions=131072,
    biases=_biases,
    windows=_windows,
)
