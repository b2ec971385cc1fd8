"""Logits agree with transformers on small random models, and with recorded engines on the demo
model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.formats.safetensors import SafetensorsFile
from nybble.models.loader import load_model
from nybble.models.transformer import Model

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama no groups": ("llama", {"num_key_value_heads": 4}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama groups of 7": ("llama", {"hidden_size": 112, "num_attention_heads": 14}),
    "llama wide heads": ("llama", {"head_dim": 32}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "llama llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn rope": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 5, "head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": (
        "qwen2",
        {"tie_word_embeddings": True, "num_attention_heads": 14, "hidden_size": 112},
    ),
    "qwen2 window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
}


def reference(kind: str, settings: dict[str, Any], folder: Path) -> Any:
    """A random transformers model, saved to ``folder``; biases and norms are random too, so that a
    lost one shows."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **BASE | settings)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.copy_(torch.rand_like(p) + 0.5 if "norm" in name else torch.randn_like(p) * 0.3)
    model.save_pretrained(folder)
    return model


def expected(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def agree(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == torch.float32 and ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module", params=CASES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, Any]:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    theirs = reference(*CASES[request.param], folder)
    return load_model(folder, act_bits=32), theirs


def test_forward(pair: tuple[Model, Any]) -> None:
    ours, theirs = pair
    ids = torch.randint(0, 101, (2, 40))
    logits = ours.forward(ids)
    agree(logits, expected(theirs, ids))
    agree(ours.forward(ids, last_only=True), logits[:, -1:])


def test_prefill_and_decode(pair: tuple[Model, Any]) -> None:
    ours, theirs = pair
    ids = torch.randint(0, 101, (1, 24))
    cache = ours.new_cache(1, 24)
    pieces = [ours.forward(part, cache) for part in ids.split([11, 5, *[1] * 8], dim=1)]
    agree(torch.cat(pieces, dim=1), expected(theirs, ids))
    assert cache.lengths.tolist() == [24]


def test_rows_of_different_lengths(pair: tuple[Model, Any]) -> None:
    """Prefilled one by one, then decoded together."""
    ours, theirs = pair
    texts = [torch.randint(0, 101, (1, n)) for n in (3, 17, 9)]
    cache = ours.new_cache(3, 32)
    for row, text in enumerate(texts):
        ours.forward(text[:, :-2], cache.rows(row, row + 1))
    step = ours.forward(torch.cat([t[:, -2:-1] for t in texts]), cache)
    last = ours.forward(torch.cat([t[:, -1:] for t in texts]), cache)
    for row, text in enumerate(texts):
        agree(torch.cat([step[row], last[row]]), expected(theirs, text)[0, -2:])


def test_old_rope_fields(tmp_path: Path) -> None:
    """Checkpoints from before transformers 5 say rope_theta and rope_scaling."""
    theirs = reference("llama", {"rope_parameters": LLAMA3}, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    path.write_text(json.dumps(config | {"rope_scaling": scaling}))
    ids = torch.randint(0, 101, (1, 60))
    agree(load_model(tmp_path, act_bits=32).forward(ids), expected(theirs, ids))


def test_bfloat16_weights_stay(tmp_path: Path) -> None:
    """As stored by default; in the asked dtype when one is given."""
    reference("llama", {}, tmp_path).bfloat16().save_pretrained(tmp_path)
    theirs = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32
    )
    ids = torch.randint(0, 101, (1, 9))
    model = load_model(tmp_path)
    assert model.embedding.weight.dtype == torch.bfloat16 and model.dtype == torch.float32
    agree(model.forward(ids), expected(theirs, ids))
    assert load_model(tmp_path, dtype=torch.float32).embedding.weight.dtype == torch.float32


@pytest.mark.model
@pytest.mark.parametrize(("name", "largest"), [("demo-model", 0.05), ("golden/exl2-4.0bpw", 0.06)])
def test_recorded_logits(data: Path, name: str, largest: float) -> None:
    """The records were computed in float16; for EXL2 one of 786432 exact logits lies 0.0511 from
    its record."""
    recorded = SafetensorsFile(data / name / "expected_logits.safetensors")
    ids, want = recorded.tensor("ids"), recorded.tensor("logits").float()
    model = load_model(data / name, act_bits=32)
    got = model.forward(ids[None, : len(want)])[0]
    assert (got - want).abs().max() < largest and (got - want).square().mean().sqrt() < 0.01
    top = want.topk(2).values
    clear = top[:, 0] - top[:, 1] > 0.05
    assert torch.equal(got.argmax(-1)[clear], want.argmax(-1)[clear])
