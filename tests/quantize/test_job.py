"""A quantization from folder to folder: what comes out, and what is left when it is stopped."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nybble.quantize.job as job
from nybble.errors import FormatError, SettingError
from nybble.formats.detect import open_checkpoint
from nybble.formats.safetensors import write_safetensors
from nybble.models.loader import load_model
from nybble.ops.packed import dequantize
from nybble.quantize.job import Settings, quantize_rtn

H, F, KV, V = 128, 256, 64, 160
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": V,
    "max_position_embeddings": 64,
}
SHAPES = {
    "self_attn.q_proj": (H, H),
    "self_attn.k_proj": (KV, H),
    "self_attn.v_proj": (KV, H),
    "self_attn.o_proj": (H, H),
    "mlp.gate_proj": (F, H),
    "mlp.up_proj": (F, H),
    "mlp.down_proj": (H, F),
}
SETTINGS = Settings(bits=5.0, group_size=64)


def source(folder: Path, *, tied: bool = False, bias: bool = False, vocab: int = V) -> Path:
    """A random model as a folder."""
    config = CONFIG | {"tie_word_embeddings": tied, "attention_bias": bias, "vocab_size": vocab}
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": torch.randn(vocab, H) * 0.1,
        "model.norm.weight": torch.rand(H) + 0.5,
    }
    if not tied:
        tensors["lm_head.weight"] = torch.randn(vocab, H) * 0.1
    for i in range(2):
        layer = f"model.layers.{i}"
        for name, shape in SHAPES.items():
            tensors[f"{layer}.{name}.weight"] = torch.randn(shape) * 0.1
            if bias and name.startswith("self_attn"):
                tensors[f"{layer}.{name}.bias"] = torch.randn(shape[0])
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = torch.rand(H) + 0.5
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes | dict[str, Any]]:
    """Every file's bytes; of the report all but the time it took."""
    out: dict[str, bytes | dict[str, Any]] = {p.name: p.read_bytes() for p in folder.iterdir()}
    out["report.json"] = json.loads((folder / "report.json").read_text()) | {"seconds": 0}
    return out


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Ctrl-C in the middle of the matrix number ``call``."""
    real, calls = job.quantize_linear, [0]

    def stopping(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(job, "quantize_linear", stopping)


@pytest.mark.parametrize(
    "kind", [{}, {"tied": True}, {"bias": True}, {"vocab": 150}, {"tied": True, "vocab": 150}]
)
def test_the_output_is_nearly_the_source(tmp_path: Path, kind: dict[str, Any]) -> None:
    before = source(tmp_path / "in", **kind)
    report = quantize_rtn(before, tmp_path / "out", SETTINGS)
    assert 4.8 <= report.bits <= 5.0
    assert report.kept == ()
    made = open_checkpoint(tmp_path / "out")
    assert made.format == "exl2"
    assert sum(made.info(name).nbytes for name in made.names()) == report.bytes
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["bits"] == report.bits and len(stored["layers"]) == 15
    first = open_checkpoint(before)
    for layer in stored["layers"]:
        key = (
            "model.embed_tokens" if kind.get("tied") and layer["key"] == "lm_head" else layer["key"]
        )
        want = first.tensor(f"{key}.weight").float()
        got = dequantize(made.linear(layer["key"]).to_packed()).T[: want.shape[0]]
        error = float((got - want).norm() / want.norm())
        # The report tells the truth; 0.107 is what the best uniform 4-bit quantizer of a Gaussian loses (Max, 1960).
        assert error == pytest.approx(layer["error"], abs=2e-3)
        assert error < 0.107
    logits = load_model(tmp_path / "out").forward(torch.randint(0, 150, (2, 12)))
    assert logits.shape == (2, 12, kind.get("vocab", V)) and logits.isfinite().all()


def test_inputs_that_are_no_multiple_of_32_are_kept(tmp_path: Path) -> None:
    before = source(tmp_path / "in")
    config = json.loads((before / "config.json").read_text()) | {"intermediate_size": 240}
    (before / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(before)
    tensors = {name: checkpoint.tensor(name).clone() for name in checkpoint.names()}
    for i in range(2):
        for name in ("gate_proj", "up_proj"):
            key = f"model.layers.{i}.mlp.{name}.weight"
            tensors[key] = tensors[key][:240].clone()
        key = f"model.layers.{i}.mlp.down_proj.weight"
        tensors[key] = tensors[key][:, :240].contiguous()
    write_safetensors(before / "model.safetensors", tensors)
    report = quantize_rtn(before, tmp_path / "out", SETTINGS)
    assert report.kept == tuple(f"model.layers.{i}.mlp.down_proj" for i in range(2))
    ids = torch.randint(0, V, (1, 8))
    plain, small = (load_model(tmp_path / name).forward(ids) for name in ("in", "out"))
    assert float((small - plain).norm() / plain.norm()) < 0.2


@pytest.mark.parametrize("call", [1, 6, 14])
def test_a_stopped_job_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    before = source(tmp_path / "in")
    quantize_rtn(before, tmp_path / "whole", SETTINGS)
    with monkeypatch.context() as patch:
        stop_at(patch, call)
        with pytest.raises(KeyboardInterrupt):
            quantize_rtn(before, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
    done = [p.stem for p in (tmp_path / ".out.work").glob("0*.json")]
    with monkeypatch.context() as patch:
        made: list[str] = []
        real = job.quantize_linear
        patch.setattr(job, "quantize_linear", lambda *a: (made.append(a[4]), real(*a))[1])
        quantize_rtn(before, tmp_path / "out", SETTINGS)
    assert len(made) < 15 or not done  # finished sites are not made again
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_stopped_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source(tmp_path / "in")
    quantize_rtn(before, tmp_path / "whole", SETTINGS)

    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    for step in ("_write_shards", "_publish"):
        with monkeypatch.context() as patch:
            patch.setattr(job, step, stopped)
            with pytest.raises(KeyboardInterrupt):
                quantize_rtn(before, tmp_path / "out", SETTINGS)
        assert not (tmp_path / "out").exists()
    quantize_rtn(before, tmp_path / "out", SETTINGS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_settings_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source(tmp_path / "in")
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            quantize_rtn(before, tmp_path / "out", SETTINGS)
    report = quantize_rtn(before, tmp_path / "out", Settings(bits=3.0, group_size=64))
    assert 2.8 <= report.bits <= 3.0


def test_an_output_that_exists(tmp_path: Path) -> None:
    before = source(tmp_path / "in")
    quantize_rtn(before, tmp_path / "out", SETTINGS)
    kept = contents(tmp_path / "out")
    with pytest.raises(SettingError, match=r"exists already.*--force"):
        quantize_rtn(before, tmp_path / "out", Settings(bits=3.0))
    assert contents(tmp_path / "out") == kept
    quantize_rtn(before, tmp_path / "out", Settings(bits=3.0), force=True)
    assert contents(tmp_path / "out") != kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_force_spares_what_is_no_model(tmp_path: Path) -> None:
    before = source(tmp_path / "in")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("x")
    with pytest.raises(SettingError, match="something else than a model"):
        quantize_rtn(before, tmp_path / "letters", SETTINGS, force=True)
    with pytest.raises(SettingError, match="the source itself"):
        quantize_rtn(before, before, SETTINGS, force=True)


def test_a_full_disk_is_seen_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source(tmp_path / "in")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(SettingError, match=r"GB are needed while quantizing, 0\.00 GB are free"):
        quantize_rtn(before, tmp_path / "out", SETTINGS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (Settings(bits=1.0), "--bits 1 cannot be reached"),
        (Settings(bits=9.0), "--bits 9 cannot be reached"),
        (Settings(head_bits=7), "--head-bits: expected one of"),
        (Settings(group_size=48), "--group-size: expected"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path: Path, settings: Settings, text: str) -> None:
    before = source(tmp_path / "in")
    with pytest.raises(SettingError, match=text):
        quantize_rtn(before, tmp_path / "out", settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_a_quantized_or_damaged_source(tmp_path: Path) -> None:
    before = source(tmp_path / "in")
    quantize_rtn(before, tmp_path / "out", SETTINGS)
    with pytest.raises(FormatError, match="expected a full-precision checkpoint"):
        quantize_rtn(tmp_path / "out", tmp_path / "again", SETTINGS)
    checkpoint = open_checkpoint(before)
    tensors = {name: checkpoint.tensor(name).clone() for name in checkpoint.names()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    write_safetensors(before / "model.safetensors", tensors)
    with pytest.raises(FormatError, match=r"layers.1.mlp.up_proj.weight: expected finite"):
        quantize_rtn(before, tmp_path / "again", SETTINGS)
    assert not (tmp_path / "again").exists()


def test_large_models_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source(tmp_path / "in")
    quantize_rtn(before, tmp_path / "one", SETTINGS)
    monkeypatch.setattr(job, "SHARD_BYTES", 100_000)
    quantize_rtn(before, tmp_path / "many", SETTINGS)
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 1
    assert sorted(one.names()) == sorted(many.names())
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.names())
