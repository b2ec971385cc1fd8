"""What an architecture is, and which ones there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nybble.errors import UnsupportedModelError


@dataclass(frozen=True)
class LayerNames:
    """Tensors of one layer, after the layer's prefix."""

    attention_norm: str
    q: str
    k: str
    v: str
    out: str
    mlp_norm: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class WeightNames:
    """Tensors of a model. Linear layers are keys without a suffix, since each format adds its
    own."""

    embedding: str
    layer: str  # prefix of layer {i}
    layers: LayerNames
    norm: str
    head: str


@dataclass(frozen=True)
class Biases:
    """Which linear layers must have a bias."""

    qkv: bool = False
    out: bool = False
    mlp: bool = False


@dataclass(frozen=True)
class Architecture:
    """A decoder as one ``models/<architecture>.py`` describes it: names, and what its config leaves
    unsaid."""

    model_type: str
    class_name: str  # in the config's "architectures"
    names: WeightNames
    max_positions: int  # where the config gives none
    biases: Callable[[Mapping[str, Any]], Biases]  # from config.json
    windows: Callable[
        [Mapping[str, Any], int], tuple[int, ...]
    ]  # config.json, layers -> of each layer; 0: every key


# Imported when a checkpoint asks for one.
MODULES = {
    "llama": "nybble.models.llama",
    "mistral": "nybble.models.mistral",
    "qwen2": "nybble.models.qwen2",
}


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that ``config`` (config.json) names by ``model_type`` or ``architectures``.

    Raises:
        UnsupportedModelError: none is named, or it is not one of ``MODULES``.
    """
    model_type, classes = config.get("model_type"), config.get("architectures")
    if model_type is not None and not isinstance(model_type, str):
        raise UnsupportedModelError(
            f"config.json: model_type is {model_type!r}, expected a name such as 'llama'"
        )
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    ):
        raise UnsupportedModelError(
            f"config.json: architectures is {classes!r}, expected a list of class names"
        )
    for name, module in MODULES.items():
        if model_type not in (None, name):
            continue
        found: Architecture = importlib.import_module(module).ARCHITECTURE
        if classes and found.class_name not in classes:
            if model_type is None:
                continue
            raise UnsupportedModelError(
                f"config.json: architectures is {classes}, expected {found.class_name}: only "
                "causal language models run"
            )
        if model_type is not None or classes:
            return found
    raise UnsupportedModelError(
        f"config.json: model_type is {model_type!r} and architectures {classes!r}, expected "
        f"one of {', '.join(MODULES)}"
    )
