"""The safetensors container: a checked reader and a careful writer.

A file is an 8-byte little-endian header length, a JSON header, then the tensors' bytes. The reader
trusts nothing: the header is parsed entry by entry (so a hostile header costs memory in proportion
to its own bytes), every entry must agree with itself, and together the entries must tile the data
exactly. Only then can a tensor be asked for, and only that tensor's bytes are mapped. The byte
rules are in ``docs/formats/safetensors.md``.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nybble.errors import FormatError, NybbleError

HEADER_CAP = 100_000_000  # bytes; the limit of the reference implementation
TENSOR_CAP = 1 << 17  # entries a file: keeps the parsed header under 64 MiB
ENTRY_CAP = 1024  # bytes of one tensor's JSON object
RANK_CAP = 16
MAP_FROM = 1 << 16  # tensors of at least this many bytes are mapped, smaller ones are read

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    # Torch has these three from 2.3 on.
    **{f"U{n}": getattr(torch, f"uint{n}") for n in (64, 32, 16) if hasattr(torch, f"uint{n}")},
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.)*"')


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``start`` and ``stop`` count bytes from the start of the file."""

    __slots__ = ("dtype", "shape", "start", "stop")
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.stop - self.start


class SafetensorsFile:
    """A checked safetensors file; tensors are read when asked for.

    Args:
        path: the file. Its header is read and checked at once; raises :class:`FormatError` naming
            the rule it breaks.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_safetensors(folder + "/a.safetensors", {"x": torch.arange(3)})
    ...     SafetensorsFile(folder + "/a.safetensors").tensor("x")
    tensor([0, 1, 2])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                header, data_start = self._read_header(file)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read: {error.strerror or error}.") from error
        self.metadata: dict[str, str] = {}
        self.infos: dict[str, TensorInfo] = {}
        self._parse(header, data_start)
        self._check_tiling(data_start)

    def names(self) -> list[str]:
        """Tensor names in the order of the header."""
        return list(self.infos)

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name``; large ones are private maps of the file, so writing to one never
        changes the file."""
        info = self.infos.get(name)
        if info is None:
            raise FormatError(f"{self.path}: there is no tensor {name!r}.")
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size != self.size:
                    raise self._error("its size changed after it was opened; open it again")
                buffer, offset = self._bytes(file, info)
        except OSError as error:
            raise self._error(
                f"tensor {name!r} cannot be read: {error.strerror or error}"
            ) from error
        flat = torch.frombuffer(buffer, dtype=torch.uint8, count=info.nbytes, offset=offset)
        if flat.data_ptr() % info.dtype.itemsize:
            flat = flat.clone()  # the format does not promise alignment, kernels want it
        return flat.view(info.dtype).view(info.shape)

    def _bytes(self, file: Any, info: TensorInfo) -> tuple[Any, int]:
        """A writable buffer with the tensor's bytes, and where in it they start."""
        if info.nbytes < MAP_FROM:
            file.seek(info.start)
            small = bytearray(file.read(info.nbytes))
            if len(small) != info.nbytes:
                raise self._error("it became shorter while it was read; fetch it again")
            return small, 0
        base = info.start - info.start % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(file.fileno(), info.stop - base, access=mmap.ACCESS_COPY, offset=base)
        return mapped, info.start - base

    def _error(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: not a sound safetensors file: {what}.")

    def _read_header(self, file: Any) -> tuple[bytes, int]:
        first = file.read(8)
        if len(first) < 8:
            raise self._error(f"expected at least 8 bytes, got {len(first)}; fetch it again")
        if first[:4] == b"GGUF":
            raise FormatError(
                f"{self.path}: this is a GGUF file, which nybble does not read; use the "
                "safetensors model."
            )
        if first[:4] == b"PK\x03\x04" or first[:2] == b"\x80\x02":
            raise FormatError(
                f"{self.path}: this is a pickle (PyTorch) file, which nybble never opens; convert "
                "it."
            )
        if first.startswith(b"version "):
            raise FormatError(
                f"{self.path}: this is a git-lfs pointer, not the model; run `git lfs pull`."
            )
        length = int.from_bytes(first, "little")
        if length > HEADER_CAP:
            raise self._error(f"expected a header of at most {HEADER_CAP} bytes, got {length}")
        if length > self.size - 8:
            raise self._error(
                f"the header says {length} bytes, the file has {self.size - 8} after it; fetch it "
                "again"
            )
        header = file.read(length)
        if len(header) != length:
            raise self._error("it became shorter while it was read; fetch it again")
        return header, 8 + length

    def _parse(self, text: bytes, data_start: int) -> None:
        """Walk the outer object; each value is parsed alone."""
        at = self._expect(text, 0, b"{")
        more = text[at : at + 1] != b"}"
        while more:
            name, at = self._string(text, at)
            at = self._expect(text, at, b":")
            if name == "__metadata__":
                at = self._metadata(text, at)
            else:
                at = self._entry(name, text, at, data_start)
            more = text[at : at + 1] == b","
            at = _skip(text, at + 1) if more else at
        at = self._expect(text, at, b"}")
        if at != len(text):
            raise self._error(f"the header has bytes after its end, at byte {at}")

    def _entry(self, name: str, text: bytes, at: int, data_start: int) -> int:
        end = text.find(b"}", at, at + ENTRY_CAP) + 1
        if text[at : at + 1] != b"{" or not end:
            raise self._error(
                f"tensor {name[:80]!r}: expected an object of at most {ENTRY_CAP} bytes"
            )
        if name in self.infos:
            raise self._error(f"tensor {name[:80]!r} is listed twice")
        if len(self.infos) == TENSOR_CAP:
            raise self._error(f"expected at most {TENSOR_CAP} tensors; split the file")
        try:
            pairs = json.loads(text[at:end], object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise self._error(f"tensor {name[:80]!r}: its entry is not JSON ({error})") from error
        self.infos[name] = self._info(name, pairs, data_start)
        return _skip(text, end)

    def _info(self, name: str, pairs: Any, data_start: int) -> TensorInfo:
        """One entry, checked by itself and against the file's size."""
        where = f"tensor {name[:80]!r}"
        keys = sorted(pair[0] for pair in pairs) if isinstance(pairs, list) else []
        if keys != ["data_offsets", "dtype", "shape"]:
            raise self._error(
                f"{where}: expected the keys dtype, shape and data_offsets once each, got {keys}"
            )
        entry = dict(pairs)
        dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
        if dtype is None:
            raise self._error(
                f"{where}: expected a dtype of {', '.join(DTYPES)}, got {str(dtype_name)[:80]!r}"
            )
        if not _counts(shape) or len(shape) > RANK_CAP:
            raise self._error(
                f"{where}: expected a shape of at most {RANK_CAP} sizes >= 0, got {str(shape)[:80]}"
            )
        if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._error(
                f"{where}: expected data_offsets [start, stop] with start <= stop, got "
                f"{str(offsets)[:80]}"
            )
        start, stop = offsets
        if stop > self.size - data_start:
            have = self.size - data_start
            raise self._error(
                f"{where}: its bytes end at {stop}, the file has {have}; fetch it again"
            )
        wanted = dtype.itemsize
        for size in shape:  # Python integers do not overflow
            wanted *= size
        if wanted != stop - start:
            raise self._error(
                f"{where}: {dtype_name} {shape} is {wanted} bytes, data_offsets give {stop - start}"
            )
        return TensorInfo(dtype, tuple(shape), data_start + start, data_start + stop)

    def _metadata(self, text: bytes, at: int) -> int:
        """``{"key": "value"}``, strings only; nothing in it is used to read tensors."""
        if self.metadata:
            raise self._error("__metadata__ is listed twice")
        at = self._expect(text, at, b"{")
        more = text[at : at + 1] != b"}"
        while more:
            key, at = self._string(text, at)
            at = self._expect(text, at, b":")
            if key in self.metadata:
                raise self._error(f"__metadata__ has {key[:80]!r} twice")
            if len(self.metadata) == TENSOR_CAP:
                raise self._error(f"expected at most {TENSOR_CAP} entries in __metadata__")
            self.metadata[key], at = self._string(text, at)
            more = text[at : at + 1] == b","
            at = _skip(text, at + 1) if more else at
        return self._expect(text, at, b"}")

    def _expect(self, text: bytes, at: int, token: bytes) -> int:
        """Pass ``token`` and the white space round it."""
        at = _skip(text, at)
        if text[at : at + 1] != token:
            got = text[at : at + 1].decode("latin-1") or "the end"
            raise self._error(f"the header needs {token.decode()!r} at byte {at}, got {got!r}")
        return _skip(text, at + 1)

    def _string(self, text: bytes, at: int) -> tuple[str, int]:
        match = _STRING.match(text, at)
        if match is None:
            raise self._error(f"the header needs a string at byte {at}")
        try:
            value: str = json.loads(match.group())
            value.encode()  # a lone surrogate is no name
        except ValueError as error:
            raise self._error(f"the string at byte {at} of the header is not UTF-8 JSON") from error
        return value, _skip(text, match.end())

    def _check_tiling(self, data_start: int) -> None:
        """Sorted by offset, the tensors must cover the data from first byte to last, each byte
        once."""
        at = data_start
        for name, info in sorted(
            self.infos.items(), key=lambda item: (item[1].start, item[1].stop)
        ):
            if info.start != at:
                kind = (
                    "overlaps the one before it"
                    if info.start < at
                    else f"leaves a hole of {info.start - at} bytes"
                )
                raise self._error(f"tensor {name[:80]!r} {kind}")
            at = info.stop
        if at != self.size:
            raise self._error(f"{self.size - at} bytes after the last tensor belong to none")


def _skip(text: bytes, at: int) -> int:
    """The next byte that is not JSON white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _counts(value: object) -> bool:
    """A list of integers of 0 to 2^62; ``bool`` is not one. The limit also holds beside a 0, where
    any product is 0."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= 1 << 62 for item in value
    )


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` to ``path``: a temporary file beside it first, flushed to disk, then
    renamed over it.

    Either the whole new file is there afterwards or the old one still is. Raises
    :class:`NybbleError` when the disk is full or the folder cannot be written,
    :class:`FormatError` for a dtype the container has no name for.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_safetensors(folder + "/a.safetensors", {"x": torch.zeros(2, 3)})
    """
    path = Path(path)
    # widest dtype first keeps every tensor aligned, then by name: the same bytes whatever the
    # order of the mapping
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in NAMES or name == "__metadata__":
            raise FormatError(f"{path}: tensor {name!r} of {tensor.dtype} has no safetensors form.")
        entry = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        header[name] = entry
        at += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                _write_tensor(file, tensors[name])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise NybbleError(
            f"{path}: cannot be written: {error.strerror or error}; nothing was changed."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_tensor(file: Any, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous()
    if flat.nbytes:  # straight from its memory: no copy, and numpy is not needed
        file.write((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr()))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; Windows has no handle for it and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
