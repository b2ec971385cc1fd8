"""A seeded mutator of checkpoints, and the one promise of the readers: only named errors, and
memory within the file's.

``python -m tests.fuzz.mutate SEED COUNT`` runs it by hand; a failing case prints its number, and
``case(seed, number)`` makes the same folder again.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nybble.errors import NybbleError
from nybble.formats.detect import open_checkpoint
from tests.formats.make import LAYOUTS, quantize, write_model

ALLOWANCE = 64 << 20  # bytes beyond the file's own
NUMBERS = [
    -1,
    0,
    1,
    2,
    3,
    7,
    31,
    33,
    255,
    1 << 15,
    1 << 31,
    (1 << 31) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 64,
    10**30,
]
ODD: list[Any] = [
    None,
    True,
    "",
    "a",
    0.5,
    -1.5,
    [],
    {},
    [[1]],
    float("nan"),
    float("inf"),
    "../x",
    "\x00",
]


def seeds(folder: Path) -> list[tuple[bytes, bytes]]:
    """The sound checkpoints that are mutated: the bytes of model.safetensors and config.json of
    each layout."""
    torch.manual_seed(1)
    found = []
    for layout in LAYOUTS:
        made = quantize(torch.randn(32, 128), layout, group_size=64, bias=torch.randn(32).half())
        at = write_model(folder / layout, {"a": made}, {"b.weight": torch.randn(8, 16).half()})
        found.append(((at / "model.safetensors").read_bytes(), (at / "config.json").read_bytes()))
    return found


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes, in the header more often than not."""
    out = bytearray(data)
    reach = len(data) if rng.random() < 0.4 else min(len(data), 600)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(reach)] = rng.randrange(256)
    return bytes(out)


def grow(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 4, 8, 100))) + data[at:]


def lie(data: bytes, rng: random.Random) -> bytes:
    """Change one value of one header entry: shape, offset, dtype, or its type altogether."""
    header, body = split(data)
    entry = header[rng.choice(list(header))]
    field = rng.choice(list(entry))
    if field == "dtype":
        entry[field] = rng.choice(
            ["F32", "I64", "I16", "BF16", "U8", "F16", "I32", "F4", "BOOL", "f32", 3]
        )
    elif rng.random() < 0.3:
        entry[field] = rng.choice(ODD)
    elif entry[field]:
        entry[field][rng.randrange(len(entry[field]))] = rng.choice(NUMBERS + ODD)
    return join(header, body)


def reshape(data: bytes, rng: random.Random) -> bytes:
    """Another shape or dtype of as many bytes, so that only the format's own checks can find it."""
    header, body = split(data)
    entry = header[rng.choice(list(header))]
    sizes = {"I32": 4, "F16": 2, "I16": 2, "F32": 4, "BF16": 2}
    kind = rng.choice(list(sizes))
    count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // sizes[kind]
    part = rng.choice([d for d in range(1, count + 1) if count % d == 0] or [1])
    shapes = [
        entry["shape"],
        entry["shape"][::-1],
        [count],
        [part, count // part],
        [1, count],
        [count, 1],
        [0, count],
    ]
    entry["dtype"], entry["shape"] = rng.choice([entry["dtype"], kind]), rng.choice(shapes)
    return join(header, body)


def poison(data: bytes, rng: random.Random) -> bytes:
    """Overwrite part of one tensor: NaN scales, bad indices, wrong widths."""
    header, body = split(data)
    start, stop = header[rng.choice(list(header))]["data_offsets"]
    out = bytearray(body)
    patterns = (
        b"\xff",
        b"\x00",
        b"\x7f",
        b"\x80",
        b"\x00\x7e",
        b"\x00\x7c",
        b"\x07\x00",
        b"\xff\xff\xff\x7f",
    )
    pattern = rng.choice(patterns)
    at = rng.randrange(start, stop) if rng.random() < 0.7 else start
    length = min(stop - at, rng.choice((1, 2, 4, 16, 1 << 20)))
    out[at : at + length] = (pattern * length)[:length]
    return join(header, bytes(out))


def rename(data: bytes, rng: random.Random) -> bytes:
    """Drop, rename or swap tensors."""
    header, body = split(data)
    one, two = rng.choice(list(header)), rng.choice(list(header))
    how = rng.randrange(3)
    if how == 0:
        header[
            "a." + rng.choice(["qweight", "q_weight", "weight", "g_idx", "scaled_zeros", "x"])
        ] = header.pop(one)
    elif how == 1:
        header[one], header[two] = header[two], header[one]
    else:
        del header[one]
    return join(header, body)


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    truncate,
    flip,
    grow,
    lie,
    lie,
    reshape,
    poison,
    poison,
    rename,
]


def settings(text: bytes, rng: random.Random) -> bytes:
    """A changed config.json."""
    if rng.random() < 0.3:
        return flip(text, rng)
    config = json.loads(text)
    quant = config["quantization_config"]
    key = rng.choice([*quant, "quant_method", "modules_to_not_convert", "checkpoint_format"])
    quant[key] = rng.choice([*ODD, *NUMBERS, "gptq", "awq", "exl2", "gptq_v2", "fp8", 128, 64, 32])
    if rng.random() < 0.1:
        config["quantization_config"] = rng.choice(ODD)
    return json.dumps(config).encode()


def case(sound: list[tuple[bytes, bytes]], seed: int, number: int) -> tuple[bytes, bytes]:
    """Mutated model.safetensors and config.json: case ``number`` of ``seed``."""
    rng = random.Random(seed * 1_000_003 + number)
    weights, config = rng.choice(sound)
    if rng.random() < 0.2:
        return weights, settings(config, rng)
    weights = rng.choice(MUTATIONS)(weights, rng)
    return weights, settings(config, rng) if rng.random() < 0.1 else config


def read_all(folder: Path) -> str:
    """Open the checkpoint and read every layer: ``sound``, or the first words of the named
    error."""
    try:
        checkpoint = open_checkpoint(folder)
        for key in list(checkpoint.linears()):
            layer = checkpoint.linear(key)
            if checkpoint.kind(key) != "fp16":
                packed = layer.to_packed()
                assert bool(torch.isfinite(packed.scales).all())
    except NybbleError as error:
        assert str(error).strip(), "an error without words"
        return type(error).__name__
    return "sound"


def run(seed: int, count: int) -> dict[str, int]:
    """Read ``count`` mutated checkpoints; returns how often each result came."""
    results: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        sound = seeds(Path(name) / "sound")
        folder = Path(name) / "case"
        folder.mkdir()
        tracemalloc.start()
        try:
            for number in range(count):
                weights, config = case(sound, seed, number)
                (folder / "model.safetensors").write_bytes(weights)
                (folder / "config.json").write_bytes(config)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                try:
                    result = read_all(folder)
                except Exception as error:
                    raise AssertionError(
                        f"case({seed}, {number}): {type(error).__name__}: {error}"
                    ) from error
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak <= len(weights) + ALLOWANCE, (
                    f"case({seed}, {number}): {peak} bytes of Python memory"
                )
                results[result] = results.get(result, 0) + 1
        finally:
            tracemalloc.stop()
    return results


if __name__ == "__main__":
    print(run(int(sys.argv[1]), int(sys.argv[2])))
