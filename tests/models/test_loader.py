"""Loading: quantized layers mean their stored numbers, and a checkpoint that does not fit its
config is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.errors import FormatError, RequestError, SettingError
from nybble.formats.safetensors import SafetensorsFile, write_safetensors
from nybble.models.hub import resolve
from nybble.models.loader import load_model
from tests.formats.make import quantize, write_model

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
}


def random_tensors() -> dict[str, Tensor]:
    """A dense checkpoint of CONFIG."""
    h, f, kv, v = 128, 256, 64, 160
    out = {"model.embed_tokens.weight": torch.randn(v, h), "model.norm.weight": torch.rand(h) + 0.5}
    out["lm_head.weight"] = torch.randn(v, h) * 0.1
    shapes = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h)}
    shapes |= {
        "self_attn.o_proj": (h, h),
        "mlp.gate_proj": (f, h),
        "mlp.up_proj": (f, h),
        "mlp.down_proj": (h, f),
    }
    for i in range(2):
        for name, shape in shapes.items():
            out[f"model.layers.{i}.{name}.weight"] = torch.randn(shape) * 0.1
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"model.layers.{i}.{name}.weight"] = torch.rand(h) + 0.5
    return out


def save(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("layout", "settings", "products"),
    [
        ("gptq", {}, 1),
        ("gptq", {"bits": 2}, 1),
        ("gptq", {"bits": 3}, 1),
        ("gptq", {"bits": 8}, 1),
        ("gptq", {"v2": True}, 1),
        ("gptq", {"act_order": True}, None),
        ("awq-gemm", {}, 1),
        ("awq-gemv", {"group_size": 128}, 1),
        ("awq-gemv-fast", {"group_size": 128}, 1),
        ("awq-v2", {"group_size": 128}, 1),
        ("exl2", {"act_order": True}, None),
    ],
)
def test_quantized_is_its_dequantized_self(
    tmp_path: Path, layout: str, settings: dict[str, Any], products: int | None
) -> None:
    tensors = random_tensors()
    made = {
        name.removesuffix(".weight"): quantize(weight, layout, **settings)
        for name, weight in tensors.items()
        if "_proj" in name or name.startswith("lm_head")
    }
    dense = {name: t for name, t in tensors.items() if name.removesuffix(".weight") not in made}
    model = load_model(write_model(tmp_path / "q", made, dense, CONFIG), act_bits=32)
    plain = load_model(
        save(tmp_path / "d", dense | {f"{key}.weight": m.weight for key, m in made.items()})
    )
    ids = torch.randint(0, 160, (2, 12))
    torch.testing.assert_close(model.forward(ids), plain.forward(ids), atol=2e-3, rtol=2e-3)
    if products:  # q, k and v agree in their rows, so they run as one
        assert len(model.layers[0].attention.qkv.products) == products
        assert len(model.layers[0].mlp.gate_up.products) == products


def test_missing_tensors_are_named_together(tmp_path: Path) -> None:
    tensors = random_tensors()
    lost = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    for name in lost:
        del tensors[name]
    with pytest.raises(
        FormatError, match=r"2 tensors that config\.json asks for are missing"
    ) as caught:
        load_model(save(tmp_path, tensors))
    assert all(name in str(caught.value) for name in lost)


def test_a_bias_the_config_asks_for(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"model.layers.0.self_attn.q_proj.bias"):
        load_model(save(tmp_path, random_tensors(), CONFIG | {"attention_bias": True}))


def test_unused_tensors_are_told(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.router.weight": torch.ones(2, 2),
        "model.layers.0.rotary_emb.inv_freq": torch.ones(2),
    }
    with pytest.warns(UserWarning, match=r"1 tensors are not used.*router"):
        load_model(save(tmp_path, random_tensors() | extra))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 161}, "model.embed_tokens.weight"),
        ({"intermediate_size": 255}, "mlp.gate_proj"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj"),
    ],
)
def test_a_config_of_another_model(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        load_model(save(tmp_path, random_tensors(), CONFIG | change))


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(
        save(tmp_path, random_tensors()), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]


def test_hub_names(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(FormatError, match="no such folder"):
        resolve(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match="is a file"):
        resolve(tmp_path / "file")


def test_download_takes_the_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def download(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("owner/model") == tmp_path
    assert asked["name"] == "owner/model"
    assert set(asked["allow_patterns"]) == {"*.safetensors", "*.json", "*.jinja"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
        ({"act_bits": 7}, "act_bits is 7"),
    ],
)
def test_settings_are_refused(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        load_model(save(tmp_path, random_tensors()), **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="use device='cpu'"):
        load_model(tmp_path, device="cuda")


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (torch.zeros(3, dtype=torch.int64), r"expected torch.int64 \[B, T\]"),
        (torch.zeros(1, 3, dtype=torch.int32), "input_ids is torch.int32"),
        (torch.zeros(1, 0, dtype=torch.int64), r"\[1, 0\]"),
        (torch.tensor([[0, 160]]), "ids from 0 to 160, expected 0 to 159"),
        (torch.tensor([[-1]]), "ids from -1"),
        (torch.zeros(1, 65, dtype=torch.int64), "the model's context is 64"),
    ],
)
def test_ids_are_checked(tmp_path: Path, ids: Tensor, text: str) -> None:
    model = load_model(save(tmp_path, random_tensors()))
    with pytest.raises(RequestError, match=text):
        model.forward(ids)


def test_cache_limits(tmp_path: Path) -> None:
    model = load_model(save(tmp_path, random_tensors()))
    with pytest.raises(RequestError, match="context is 64"):
        model.new_cache(1, 65)
    cache = model.new_cache(1, 4)
    with pytest.raises(RequestError, match="5 tokens in a sequence, but the cache's capacity is 4"):
        model.forward(torch.zeros(1, 5, dtype=torch.int64), cache)
    with pytest.raises(RequestError, match="2 rows, but the cache holds 1"):
        model.forward(torch.zeros(2, 1, dtype=torch.int64), cache)
    assert cache.lengths.tolist() == [0]


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("gptq", {"bits": 4, "act_order": True}),
        ("gptq", {"bits": 8, "group_size": -1}),
        ("awq-gemm", {"group_size": 64}),
        ("awq-gemv", {"group_size": 64}),
        ("awq-v2", {"group_size": 64}),
        ("awq-gemv-fast", {"group_size": 64}),
        ("exl2", {"bits": 4, "act_order": True}),
    ],
)
def test_the_demo_model_in_every_layout(
    data: Path, tmp_path: Path, layout: str, settings: dict[str, Any]
) -> None:
    """A trained model, whose activations are less even than random ones, at its real shapes."""
    source = SafetensorsFile(data / "demo-model" / "model.safetensors")
    config = json.loads((data / "demo-model" / "config.json").read_text())
    tensors = {name: source.tensor(name).float() for name in source.names()}
    made = {
        name.removesuffix(".weight"): quantize(weight, layout, **settings)
        for name, weight in tensors.items()
        if "_proj" in name
    }
    dense = {name: t for name, t in tensors.items() if name.removesuffix(".weight") not in made}
    model = load_model(write_model(tmp_path / "q", made, dense, config), act_bits=32)
    meant = dense | {f"{key}.weight": m.weight for key, m in made.items()}
    plain = load_model(save(tmp_path / "d", meant, config))
    ids = torch.arange(7, 4000, 61)[None]
    torch.testing.assert_close(model.forward(ids), plain.forward(ids), atol=2e-3, rtol=2e-3)
