"""Decoding with a model of random weights: tokens a second, and the share of the memory's speed."""

from __future__ import annotations

import time
from typing import Any

import torch

from nybble.benchmarks import bandwidth, gpu_ceiling, gpu_device
from nybble.benchmarks.random_matrix import random_matrix
from nybble.benchmarks.report import Report, Section, Times, giga, load_average, thread_count
from nybble.benchmarks.report import device as cpu_device
from nybble.errors import SettingError
from nybble.models.config import ModelConfig
from nybble.models.transformer import DecoderLayer, Model
from nybble.modules.attention import Attention
from nybble.modules.before import Gate, RmsNorm
from nybble.modules.embedding import Embedding
from nybble.modules.linear import Linear, PackedProduct
from nybble.modules.mlp import Mlp
from nybble.modules.rope import RopeTable

# config.json of each shape, as published.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "tinyllama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
    },
}
HEAD_BITS = 6  # llama.cpp's 4-bit files keep the head at 6 bits too (Q6_K)
WARM_TOKENS = 2
PREFILLS = 1


def random_model(
    shape: str,
    bits: int = 4,
    group: int = 128,
    act_bits: int | None = None,
    device: str = "cpu",
) -> Model:
    """A model of that shape with packed random weights; its head has 6 bits. float32 on the CPU, float16 on a GPU.

    Raises:
        SettingError: no such shape, width or group.

    >>> random_model("tiny").forward(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 512])
    """
    if shape not in SHAPES:
        raise SettingError(f"shape is {shape!r}, expected one of {', '.join(SHAPES)}")
    if act_bits not in (None, 32, 16, 8):
        raise SettingError(f"act_bits is {act_bits}, expected 32, 16 or 8")
    act_bits = _act_bits(act_bits)
    c = ModelConfig.from_dict({"model_type": "llama", **SHAPES[shape]})
    dtype = torch.float32 if device == "cpu" else torch.float16

    def linear(K: int, *widths: int, bits: int = bits) -> Linear:
        matrix = random_matrix(K, sum(widths), bits, group, device)
        return Linear([PackedProduct(matrix, act_bits)], [widths])

    def norm() -> RmsNorm:
        return RmsNorm(torch.ones(c.hidden_size, device=device), c.norm_eps)

    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layers = tuple(
        DecoderLayer(
            attention=Attention(
                norm=norm(),
                qkv=linear(c.hidden_size, q, kv, kv),
                out=linear(q, c.hidden_size),
                layer=i,
                heads=c.heads,
                kv_heads=c.kv_heads,
                head_dim=c.head_dim,
                window=0,
            ),
            mlp=Mlp(
                norm=norm(),
                gate_up=linear(c.hidden_size, c.intermediate_size, c.intermediate_size),
                down=linear(c.intermediate_size, c.hidden_size),
                gate=Gate(c.activation),
            ),
        )
        for i in range(c.layers)
    )
    # One row of the table is read a token: what the rows hold, and that they repeat, costs nothing.
    some = torch.randn(256, c.hidden_size, device=device).half()
    table = some.repeat(-(-c.vocab_size // 256), 1)[: c.vocab_size]
    return Model(
        config=c,
        device=torch.device(device),
        dtype=dtype,
        embedding=Embedding(table, dtype),
        layers=layers,
        norm=norm(),
        head=linear(c.hidden_size, c.vocab_size, bits=HEAD_BITS),
        rope=RopeTable(c.rope, c.max_positions, torch.device(device)),
    )


def token_bytes(model: Model, held: float) -> float:
    """Bytes that one token reads with ``held`` tokens in the cache: all weights, keys and values.

    The weights are the linear layers'; the cache has the model's dtype.
    """
    c = model.config
    return model.nbytes + held * 2 * c.layers * c.kv_heads * c.head_dim * model.dtype.itemsize


def time_prefill(model: Model, prefill: int, room: int) -> Times:
    """Seconds for a prompt of ``prefill`` tokens, its last token's logits included."""
    taken = []
    for _ in range(PREFILLS):
        cache = model.new_cache(1, room)
        started = time.perf_counter()
        model.forward(_prompt(model, prefill), cache=cache, last_only=True)
        _finish(model)
        taken.append(time.perf_counter() - started)
    return Times.of(taken)


def time_decode(model: Model, tokens: int, prefill: int) -> Times:
    """Seconds a token, greedily, after a prompt of ``prefill`` tokens.

    Raises:
        SettingError: the logits are not finite, so that what was timed is no decoding.
    """
    cache = model.new_cache(1, prefill + WARM_TOKENS + tokens)
    logits = model.forward(_prompt(model, prefill), cache=cache, last_only=True)
    _finish(model)
    taken = []
    for _ in range(WARM_TOKENS + tokens):
        started = time.perf_counter()
        token = logits[:, -1].argmax(-1, keepdim=True)
        logits = model.forward(token, cache=cache, last_only=True)
        _finish(model)
        taken.append(time.perf_counter() - started)
    if not bool(logits.isfinite().all()):
        raise SettingError("the random model gives logits that are not finite; try other bits")
    return Times.of(taken[WARM_TOKENS:])


def _finish(model: Model) -> None:
    """Wait for what is still running: on a GPU the calls return before."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _prompt(model: Model, tokens: int) -> torch.Tensor:
    return torch.arange(tokens)[None] % model.config.vocab_size


def decode_row(tokens: int, times: Times, read: float, ceiling: float) -> dict[str, Any]:
    """Figures of decoding from its times, bytes read a token, and the memory's GB/s.

    >>> row = decode_row(8, Times(0.1, 0.05), 1e9, 20.0)
    >>> row["tokens_s"], row["GB_s"], row["share_of_ceiling"], row["fastest_share"]
    (10.0, 10.0, 0.5, 1.0)
    """
    return {
        "tokens": tokens,
        "ms": times.median * 1e3,
        "fastest_ms": times.fastest * 1e3,
        "tokens_s": 1 / times.median,
        "MB_read": read / 1e6,
        "GB_s": giga(read, times.median),
        "share_of_ceiling": giga(read, times.median) / ceiling,
        "fastest_share": giga(read, times.fastest) / ceiling,
    }


def run(
    shape: str,
    *,
    bits: int = 4,
    group: int = 128,
    act_bits: int | None = None,
    threads: int | None = None,
    tokens: int = 32,
    prefill: int = 512,
    device: str = "cpu",
) -> Report:
    """Build the model, time prefill and decoding, and read memory as fast as it goes.

    Raises:
        SettingError: a setting is none that there is, or the context is too short for the tokens.
    """
    gpu_device.check_device(device)
    load = load_average()
    with thread_count(threads) as used:
        torch.manual_seed(0)
        model = random_model(shape, bits, group, act_bits, device)
        room = prefill + WARM_TOKENS + tokens
        if room > model.config.max_positions:
            raise SettingError(
                f"prefill and tokens need {room} positions, but {shape} has "
                f"{model.config.max_positions}; ask for fewer"
            )
        ceiling = bandwidth.read_ceiling() if device == "cpu" else gpu_ceiling.read_ceiling()
        decoding = time_decode(model, tokens, prefill)
        filling = time_prefill(model, prefill, room)
    read = token_bytes(model, prefill + WARM_TOKENS + (tokens + 1) / 2)
    row = decode_row(tokens, decoding, read, max(ceiling.values()))
    rate = {
        "tokens": prefill,
        "ms": filling.median * 1e3,
        "fastest_ms": filling.fastest * 1e3,
        "tokens_s": prefill / filling.median,
    }
    settings = {
        "shape": shape,
        "bits": bits,
        "group": group,
        "head_bits": HEAD_BITS,
        "act_bits": _act_bits(act_bits),
        "threads": used,
        "device": device,
    }
    return Report(
        "decode",
        settings,
        load,
        [
            bandwidth.section(ceiling),
            Section("decode", f"{shape}, {bits} bits, group {group}: decode", [row]),
            Section("prefill", "Prefill", [rate]),
        ],
        [
            f"Random weights; the head has {HEAD_BITS} bits. Bytes read: linear layers, keys and "
            "values. Share: of the best memory read above."
        ],
        cpu_device() if device == "cpu" else gpu_device.device(),
    )


def _act_bits(given: int | None) -> int | None:
    from nybble import env

    return given if given is not None else env.integer("NYBBLE_ACT_BITS")
