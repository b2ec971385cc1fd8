"""The full-precision checkpoint a quantizer reads: which matrices to quantize and their weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nybble.errors import FormatError
from nybble.formats.detect import Checkpoint, open_checkpoint

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"


class Source:
    """A checkpoint whose ``KEY.weight`` matrices are floating point.

    Raises FormatError when it is already quantized. ``keys``: matrices to quantize; ``kept``: those that the format cannot
    hold (inputs not a multiple of 32), which stay in half precision.
    """

    def __init__(self, path: str | Path) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(path)
        if self.checkpoint.format != "fp16":
            raise FormatError(
                f"{path}: expected a full-precision checkpoint, got one in {self.checkpoint.format}; "
                "quantize the model it was made from."
            )
        config = self.checkpoint.config
        self.tied = bool(config.get("tie_word_embeddings")) and not self.checkpoint.has(
            f"{HEAD}.weight"
        )
        matrices = [k for k in self.checkpoint.linears() if _is_layer(k)] + (
            [HEAD] if self.tied else []
        )
        self.keys = [k for k in matrices if self._shape(k)[1] % 32 == 0]
        self.kept = [k for k in matrices if k not in self.keys]

    def weight(self, key: str) -> Tensor:
        """float32 ``[N, K]``; raises FormatError when a number is NaN or infinite."""
        weight = self.checkpoint.tensor(self._name(key)).float()
        if not bool(torch.isfinite(weight).all()):
            raise FormatError(
                f"{self._name(key)}: expected finite weights, got NaN or infinity; the checkpoint is damaged."
            )
        return weight

    def bias(self, key: str) -> Tensor | None:
        """``[N]`` or None."""
        name = f"{key}.bias"
        return self.checkpoint.tensor(name) if self.checkpoint.has(name) else None

    def others(self) -> list[str]:
        """Names of the tensors that are copied: embedding, norms, matrices the format cannot hold."""
        made = {f"{k}.{part}" for k in self.keys for part in ("weight", "bias")}
        return [name for name in self.checkpoint.names() if name not in made]

    def _name(self, key: str) -> str:
        return f"{EMBEDDING if key == HEAD and self.tied else key}.weight"

    def _shape(self, key: str) -> tuple[int, ...]:
        return self.checkpoint.info(self._name(key)).shape


def _is_layer(key: str) -> bool:
    """A linear layer of the language model, by its name: not the embedding, a router, or a part of a vision tower."""
    if key == HEAD:
        return True
    return key.startswith("model.layers.") and not key.endswith(("norm", ".mlp.gate", "router"))
