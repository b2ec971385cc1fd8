"""Damage to layers and folders: each kind has a test by name, and ends in a FormatError that says
which tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nybble.errors import FormatError
from nybble.formats.base import LinearWeights
from nybble.formats.detect import INDEX, open_checkpoint
from nybble.formats.safetensors import write_safetensors
from tests.formats.make import quantize, write_model


def good(layout: str) -> Any:
    # type: ignore[type-var]
    return replace(quantize(torch.randn(32, 128), layout, group_size=64).linear, key="a")


def changed(tensor: torch.Tensor, index: Any, value: object) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


Damage = Callable[[Any], LinearWeights]
DAMAGE: dict[str, tuple[str, Damage, str]] = {
    "exl2 7 bits": (
        "exl2",
        lambda x: replace(x, q_groups=changed(x.q_groups, 0, 7)),
        "a.q_groups: expected a width",
    ),
    "exl2 0 bits": (
        "exl2",
        lambda x: replace(x, q_groups=changed(x.q_groups, 0, 0)),
        "a.q_groups: expected a width",
    ),
    "exl2 first row": (
        "exl2",
        lambda x: replace(x, q_groups=changed(x.q_groups, 1, 1)),
        "rise from 0",
    ),
    "exl2 rows fall": (
        "exl2",
        lambda x: replace(x, q_groups=changed(x.q_groups, 3, -5)),
        "rise from 0",
    ),
    "exl2 rows beyond": (
        "exl2",
        lambda x: replace(x, q_groups=changed(x.q_groups, 3, 32767)),
        "rise from 0",
    ),
    "exl2 wrong bits": (
        "exl2",
        lambda x: replace(x, q_groups=changed(x.q_groups, 0, 8)),
        "together, as q_invperm",
    ),
    "exl2 odd groups": ("exl2", lambda x: replace(x, q_groups=x.q_groups[:3]), "pairs"),
    "exl2 no groups": ("exl2", lambda x: replace(x, q_groups=x.q_groups[:0]), "a.q_groups"),
    "exl2 row twice": (
        "exl2",
        lambda x: replace(x, q_invperm=changed(x.q_invperm, 0, 1)),
        "each row once",
    ),
    "exl2 row beyond": (
        "exl2",
        lambda x: replace(x, q_invperm=changed(x.q_invperm, 0, 128)),
        "rows of 0 to 127",
    ),
    "exl2 row negative": (
        "exl2",
        lambda x: replace(x, q_invperm=changed(x.q_invperm, 0, -1)),
        "rows of 0 to 127",
    ),
    "exl2 NaN": (
        "exl2",
        lambda x: replace(x, q_scale_max=changed(x.q_scale_max, 0, torch.nan)),
        "a.q_scale_max: .*finite",
    ),
    "exl2 infinite": (
        "exl2",
        lambda x: replace(x, q_scale_max=changed(x.q_scale_max, 0, torch.inf)),
        "finite",
    ),
    "exl2 dtype": (
        "exl2",
        lambda x: replace(x, q_weight=x.q_weight.float()),
        "expected int32, got float32",
    ),
    "exl2 scale shape": (
        "exl2",
        lambda x: replace(x, q_scale=x.q_scale[:1]),
        r"shape \[2, 4\], got \[1, 4\]",
    ),
    "exl2 bias": ("exl2", lambda x: replace(x, bias=torch.zeros(3)), "a.bias"),
    "gptq 5 bits": ("gptq", lambda x: replace(x, bits=5), "a width of 2, 3, 4, 8"),
    "gptq group beyond": (
        "gptq",
        lambda x: replace(x, g_idx=changed(x.g_idx, 0, 2)),
        "groups of 0 to 1",
    ),
    "gptq group negative": (
        "gptq",
        lambda x: replace(x, g_idx=changed(x.g_idx, 0, -1)),
        "groups of 0 to 1",
    ),
    "gptq g_idx short": ("gptq", lambda x: replace(x, g_idx=x.g_idx[:-1]), "a.g_idx"),
    "gptq NaN": (
        "gptq",
        lambda x: replace(x, scales=changed(x.scales, (0, 0), torch.nan)),
        "a.scales: .*finite",
    ),
    "gptq bias NaN": (
        "gptq",
        lambda x: replace(x, bias=torch.full((32,), torch.nan)),
        "a.bias: .*finite",
    ),
    "gptq zeros": ("gptq", lambda x: replace(x, qzeros=x.qzeros[:, :-1]), "a.qzeros"),
    "gptq group size": ("gptq", lambda x: replace(x, g_idx=None, group_size=32), "4 groups of 32"),
    "awq gemm NaN": (
        "awq-gemm",
        lambda x: replace(x, scales=changed(x.scales, (0, 0), torch.inf)),
        "finite",
    ),
    "awq gemm zeros": ("awq-gemm", lambda x: replace(x, qzeros=x.qzeros[:1]), "a.qzeros"),
    "awq gemm group size": ("awq-gemm", lambda x: replace(x, group_size=128), "groups of 128"),
    "awq gemv group size": ("awq-gemv", lambda x: replace(x, group_size=48), "whole groups of 48"),
    "awq gemv width": ("awq-gemv", lambda x: replace(x, scales=x.scales[:, :-1]), "a.scales"),
    "awq v2 zero scale": (
        "awq-v2",
        lambda x: replace(x, scales=torch.zeros_like(x.scales)),
        "other than 0",
    ),
    "awq v2 NaN": (
        "awq-v2",
        lambda x: replace(x, scaled_zeros=changed(x.scaled_zeros, (0, 0), torch.nan)),
        "a.scaled_zeros: .*finite",
    ),
    "awq v2 stripes": ("awq-v2", lambda x: replace(x, qweight=x.qweight[:, :-1]), "stripes of 64"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_layers(name: str) -> None:
    layout, damage, message = DAMAGE[name]
    layer = good(layout)
    layer.validate()
    with pytest.raises(FormatError, match=message):
        damage(layer).validate()


def folder(path: Path, quant: object = None, **tensors: torch.Tensor) -> Path:
    path.mkdir(exist_ok=True)
    write_safetensors(path / "model.safetensors", tensors or {"a.weight": torch.zeros(2, 2)})
    (path / "config.json").write_text(json.dumps({"quantization_config": quant}))
    return path


@pytest.mark.parametrize(
    "method", ["bitsandbytes", "compressed-tensors", "fp8", "gguf", "exl3", "hqq"]
)
def test_other_methods_are_refused_by_name(method: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="(?i)" + method.replace("-", ".")):
        open_checkpoint(folder(tmp_path, {"quant_method": method}))


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        ({"quant_method": "gptq", "bits": 5}, "gptq bits of 2, 3, 4, 8, got 5"),
        ({"quant_method": "awq", "bits": 8}, "awq bits of 4"),
        ({"quant_method": "gptq", "bits": True}, "bits"),
        ({"quant_method": "gptq", "bits": "4"}, "bits"),
        ({"quant_method": "gptq", "group_size": 0}, "group_size"),
        ({"quant_method": "gptq", "group_size": 1 << 64}, "group_size"),
        ({"quant_method": "awq", "modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        ({"quant_method": "other"}, "exl2, gptq or awq"),
        ([], "an object"),
    ],
)
def test_bad_settings(quant: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(folder(tmp_path, quant))


def test_foreign_tensors_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="compressed-tensors"):
        open_checkpoint(folder(tmp_path, None, **{"a.weight_packed": torch.zeros(2, 2)}))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02never read")
    with pytest.raises(FormatError, match="safe_serialization=True"):
        open_checkpoint(tmp_path)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    for make, message in (
        (lambda: None, "found none; this is no model folder"),
        (lambda: (tmp_path / "m.gguf").write_bytes(b"GGUF"), "GGUF"),
    ):
        make()
        with pytest.raises(FormatError, match=message):
            open_checkpoint(tmp_path)
    with pytest.raises(FormatError, match="GGUF"):
        open_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match="expected a model folder"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (3 << 20)])
def test_bad_config(text: bytes, tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def sharded(path: Path, weight_map: dict[str, object]) -> Path:
    write_safetensors(path / "model-1.safetensors", {"a.weight": torch.zeros(2, 2)})
    write_safetensors(path / "model-2.safetensors", {"b.weight": torch.zeros(2, 2)})
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text("{}")
    return path


SOUND: dict[str, object] = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}


def test_shards_by_index(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, SOUND))
    assert sorted(checkpoint.linears()) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c.weight": "model-3.safetensors"}, "shard model-3.safetensors"),
        ({"a.weight": "model-2.safetensors"}, "which does not have it"),
        ({"a.weight": "../model-1.safetensors"}, "in a file of this folder"),
        ({"a.weight": "/etc/passwd.safetensors"}, "in a file of this folder"),
        ({"a.weight": 3}, "in a file of this folder"),
    ],
)
def test_bad_index(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(sharded(tmp_path, SOUND | change))


def test_exl2_shards_with_a_stale_index(tmp_path: Path) -> None:
    sharded(tmp_path, {"a.weight": "gone.safetensors"})
    for i, key in enumerate("ab", 1):
        write_safetensors(
            tmp_path / f"output-{i:05d}-of-00002.safetensors", {f"{key}.weight": torch.zeros(2, 2)}
        )
    assert sorted(open_checkpoint(tmp_path).linears()) == ["a", "b"]
    (tmp_path / "output-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match=r"output-00002-of-00002\.safetensors is missing"):
        open_checkpoint(tmp_path)


def test_missing_layers_and_wrong_sizes(tmp_path: Path) -> None:
    made = quantize(torch.randn(32, 128), "gptq")
    checkpoint = open_checkpoint(write_model(tmp_path, {"a": made}))
    with pytest.raises(FormatError, match="layer 'b' has none of"):
        checkpoint.linear("b")
    with pytest.raises(FormatError, match="expected 64 inputs"):
        checkpoint.linear("a", in_features=64)


@pytest.mark.parametrize(
    "unit",
    [
        '"%d":[],',
        '"%d":{},',
        '"%d":"x",',
        '"%d":1.5,',
        '"a":[[]],',
        '"%d\\u00e9":"\\ud83d\\ude00",',
        '"%d":"' + "é" * 40 + '",',
    ],
)
def test_json_takes_little_more_memory_than_its_text(unit: str, tmp_path: Path) -> None:
    """A file of many empty lists takes twenty times its size once parsed: such a file is refused before."""
    import tracemalloc

    from nybble.formats.config import PARSED_CAP, read_json

    path, sizes = tmp_path / "model.safetensors.index.json", (100_000, 3_000_000, 20_000_000)
    outcomes = []
    for size in sizes:
        body = "".join(unit.replace("%d", str(i)) for i in range(size // len(unit)))
        path.write_text('{"weight_map":{' + body.rstrip(",") + "}}", encoding="utf-8")
        tracemalloc.start()
        try:
            read_json(path, 32 << 20)
            outcomes.append("read")
        except FormatError:
            outcomes.append("refused")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= path.stat().st_size + PARSED_CAP, (outcomes, peak)
    assert outcomes[0] == "read" and outcomes[-1] == "refused"


def test_the_index_of_a_very_large_model_is_read(tmp_path: Path) -> None:
    """91,991 tensors, as the largest published model has, with names as long as its."""
    from nybble.formats.config import read_json

    names = (
        f"model.layers.{i % 61}.mlp.experts.{i // 61}.down_proj.weight_scale_inv"
        for i in range(91_991)
    )
    weight_map = dict.fromkeys(names, "model-00100-of-000163.safetensors")
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2))
    assert len(read_json(path, 32 << 20)["weight_map"]) == len(weight_map)
