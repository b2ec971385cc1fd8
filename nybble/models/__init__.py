"""Models: from a checkpoint's config and tensors to logits."""

from nybble.models.config import ModelConfig
from nybble.models.loader import load_model
from nybble.models.transformer import Model

__all__ = ["Model", "ModelConfig", "load_model"]
