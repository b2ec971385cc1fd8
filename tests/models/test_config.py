"""config.json is read as transformers reads it; what is malformed or not supported is named."""

from __future__ import annotations

from typing import Any

import pytest

from nybble.errors import UnsupportedModelError
from nybble.models.config import ModelConfig

GOOD: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def test_defaults() -> None:
    c = ModelConfig.from_dict(GOOD)
    assert (c.kv_heads, c.head_dim, c.rope.theta, c.rope.dim, c.windows) == (
        4,
        16,
        10000.0,
        16,
        (0, 0, 0),
    )
    assert c.bos is None and c.eos == () and not c.tied_head


def test_tokens() -> None:
    c = ModelConfig.from_dict(
        GOOD | {"eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": -1}
    )
    assert (c.eos, c.bos, c.pad) == ((1, 2), 0, None)
    assert ModelConfig.from_dict(GOOD | {"eos_token_id": 7}).eos == (7,)


def test_windows() -> None:
    mistral = GOOD | {"model_type": "mistral"}
    assert ModelConfig.from_dict(mistral).windows == (4096,) * 3
    assert ModelConfig.from_dict(mistral | {"sliding_window": None}).windows == (0,) * 3
    qwen = GOOD | {"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}
    assert ModelConfig.from_dict(qwen).windows == (0,) * 3
    assert ModelConfig.from_dict(qwen | {"use_sliding_window": True}).windows == (0, 8, 8)


def test_architecture_from_class_name() -> None:
    raw = {k: v for k, v in GOOD.items() if k != "model_type"} | {
        "architectures": ["Qwen2ForCausalLM"]
    }
    assert ModelConfig.from_dict(raw).architecture.model_type == "qwen2"


def test_partial_rotary() -> None:
    assert ModelConfig.from_dict(GOOD | {"partial_rotary_factor": 0.5}).rope.dim == 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": 3}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 66}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 1 << 20}, "head_dim"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.rope_type is 'dynamic'",
        ),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"model_type": "mistral", "sliding_window": "4k"}, "sliding_window"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "layer_types": [[], [], []]}, "layer_types"),
    ],
)
def test_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"config\.json") as caught:
        ModelConfig.from_dict(GOOD | change)
    assert named in str(caught.value)
