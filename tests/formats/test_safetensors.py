"""The container: every way a header can be wrong has its own test, and a write happens whole or
not at all."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from nybble.errors import FormatError, NybbleError
from nybble.formats import safetensors
from nybble.formats.safetensors import DTYPES, SafetensorsFile, write_safetensors


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def made(path: Path, header: object, body: bytes = bytes(8), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


REFUSED: dict[str, tuple[object, str]] = {
    "unknown dtype": ({"a": entry("F4")}, "expected a dtype of"),
    "dtype of another type": ({"a": entry(["F32"])}, "expected a dtype of"),
    "negative size": ({"a": entry(shape=[-2])}, "expected a shape"),
    "boolean size": ({"a": entry(shape=[True, 2])}, "expected a shape"),
    "fraction as size": ({"a": entry(shape=[2.0])}, "expected a shape"),
    "NaN as size": (
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        "expected a shape",
    ),
    "shape is no list": ({"a": entry(shape=2)}, "expected a shape"),
    "too many dimensions": ({"a": entry(shape=[1] * 17)}, "expected a shape"),
    "bytes do not match": ({"a": entry(shape=[3])}, "is 12 bytes, data_offsets give 8"),
    "product beyond 64 bits": ({"a": entry(shape=[1 << 62, 1 << 62])}, "data_offsets give 8"),
    "size beyond 64 bits beside 0": (
        {"a": entry(shape=[0, 1 << 70], offsets=[0, 0])},
        "expected a shape",
    ),
    "offsets backwards": ({"a": entry(offsets=[8, 0])}, "start <= stop"),
    "offsets negative": ({"a": entry(offsets=[-8, 0])}, "data_offsets"),
    "three offsets": ({"a": entry(offsets=[0, 4, 8])}, "data_offsets"),
    "end beyond the file": ({"a": entry(shape=[4], offsets=[0, 16])}, "its bytes end at 16"),
    "overlap": ({"a": entry(), "b": entry(shape=[1], offsets=[4, 8])}, "overlaps"),
    "same bytes twice": ({"a": entry(), "b": entry()}, "overlaps"),
    "hole before": ({"a": entry(shape=[1], offsets=[4, 8])}, "hole of 4"),
    "bytes left over": ({"a": entry(shape=[1], offsets=[0, 4])}, "4 bytes after the last"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, "once each"),
    "additional key": ({"a": {**entry(), "x": 1}}, "once each"),
    "duplicate tensor": (
        b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2),
        "listed twice",
    ),
    "duplicate key": (
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "once each",
    ),
    "no object": ([1], "needs '{'"),
    "entry no object": ({"a": 3}, "expected an object"),
    "not closed": (b'{"a":' + json.dumps(entry()).encode(), "needs '}'"),
    "text after the end": (b"{} x", "after its end"),
    "not UTF-8": (b'{"\xff":1}', "not UTF-8"),
    "lone surrogate": (b'{"\\ud800":1}', "not UTF-8"),
    "deep nesting": (b'{"a":' + b"[" * 100_000, "expected an object"),
    "deep nesting in an entry": (b'{"a":{"shape":' + b"[" * 900 + b"}}", "not JSON"),
    "long number": (
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 900 + b'],"data_offsets":[0,8]}}',
        "expected a shape",
    ),
    "metadata not text": ({"__metadata__": {"a": 1}}, "needs a string"),
    "metadata twice": (b'{"__metadata__":{"a":"b"},"__metadata__":{}}', "twice"),
    "empty": (b"", "needs '{'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_headers(name: str, tmp_path: Path) -> None:
    header, message = REFUSED[name]
    with pytest.raises(FormatError, match=message) as caught:
        SafetensorsFile(made(tmp_path / "a.safetensors", header))
    assert len(str(caught.value)) < 1200


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the header says 4000"):
        SafetensorsFile(made(tmp_path / "a.safetensors", {}, length=4000))


def test_header_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    path = made(tmp_path / "a.safetensors", {}, length=(1 << 63) + 5)
    tracemalloc.start()
    with pytest.raises(FormatError, match="at most"):
        SafetensorsFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "at least 8 bytes"),
        (b"GGUF\x03\x00\x00\x00more", "GGUF"),
        (b"PK\x03\x04zip archive", "pickle"),
        (b"\x80\x02pickled..", "pickle"),
        (b"version https://git-lfs", "git-lfs pointer"),
    ],
)
def test_files_of_other_kinds(start: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(start)
    with pytest.raises(FormatError, match=message):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        SafetensorsFile(tmp_path / "none.safetensors")


def test_many_empty_tensors_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "TENSOR_CAP", 10)
    header = {str(i): entry(shape=[0], offsets=[0, 0]) for i in range(11)}
    with pytest.raises(FormatError, match="at most 10 tensors"):
        SafetensorsFile(made(tmp_path / "a.safetensors", header, b""))


def test_a_hostile_header_takes_memory_in_proportion(tmp_path: Path) -> None:
    path = made(tmp_path / "a.safetensors", b'{"a":{"shape":[' + b"[]," * 4_000_000, b"")
    tracemalloc.start()
    with pytest.raises(FormatError):
        SafetensorsFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size + (64 << 20)


def test_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    """A map past the end of a file is a bus error, so the size is looked at again."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.zeros(100_000)})
    file = SafetensorsFile(path)
    with open(path, "r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(FormatError, match="size changed"):
        file.tensor("a")


@pytest.mark.parametrize("name", DTYPES)
def test_round_trip_and_the_reference_reader(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    raw = torch.randint(0, 2, (3, 40), dtype=torch.uint8)
    tensors = {
        "x": raw.view(DTYPES[name]),
        "empty": torch.empty(0, 3, dtype=DTYPES[name]),
        "one": raw.view(DTYPES[name])[0, 0],
    }
    write_safetensors(path, tensors, {"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    reference = pytest.importorskip("safetensors.torch").load_file(path)
    for key, tensor in tensors.items():
        for back in (file.tensor(key), reference[key]):
            assert back.dtype == tensor.dtype
            assert back.shape == tensor.shape
            assert torch.equal(
                back.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
            )


def test_mapped_tensors_are_private_and_unaligned_ones_work(tmp_path: Path) -> None:
    large = torch.arange(50_000, dtype=torch.float32)
    body = b"\x01" + large.numpy().tobytes()
    header = {"b": entry("U8", [1], [0, 1]), "a": entry("F32", [50_000], [1, 200_001])}
    path = made(tmp_path / "a.safetensors", header, body)
    before = path.read_bytes()
    tensor = SafetensorsFile(path).tensor("a")
    assert torch.equal(tensor, large)
    tensor.zero_()
    assert path.read_bytes() == before


def test_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    tensors = {
        "b": torch.zeros(3).half(),
        "a": torch.ones(2),
        "c": torch.ones(5, dtype=torch.uint8),
    }
    write_safetensors(tmp_path / "1", tensors)
    write_safetensors(tmp_path / "2", dict(reversed(tensors.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "_write_tensor", full)
    with pytest.raises(NybbleError, match="No space left"):
        write_safetensors(path, {"a": torch.zeros(300)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_dtype_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="complex64"):
        write_safetensors(tmp_path / "a", {"a": torch.zeros(2, dtype=torch.complex64)})
