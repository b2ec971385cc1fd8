"""Llama 1 to 3 and their many relatives; also the weight names that Mistral and Qwen2 share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nybble.models.registry import Architecture, Biases, LayerNames, WeightNames

NAMES = WeightNames(
    embedding="model.embed_tokens.weight",
    layer="model.layers.{i}.",
    layers=LayerNames(
        attention_norm="input_layernorm.weight",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        out="self_attn.o_proj",
        mlp_norm="post_attention_layernorm.weight",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
    ),
    norm="model.norm.weight",
    head="lm_head",
)


def _biases(config: Mapping[str, Any]) -> Biases:
    """``attention_bias`` is for all four projections, ``mlp_bias`` for all three."""
    attention = bool(config.get("attention_bias"))
    return Biases(qkv=attention, out=attention, mlp=bool(config.get("mlp_bias")))


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Llama looks at everything."""
    return (0,) * layers


ARCHITECTURE = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    names=NAMES,
    max_positions=2048,
    biases=_biases,
    windows=_windows,
)
