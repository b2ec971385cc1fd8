"""The ops through the library's plain C functions, for a torch without the stable ABI (below 2.10): the same results, slower calls.

An op's arguments go over as one row of 64-bit numbers, tensors as address, dtype, device, sizes and strides. While the kernel runs
the library asks back for what only torch can do: new memory, a copy, the current stream. ``csrc/binding/c_interface.cpp`` is the
other side.
"""

from __future__ import annotations

import ast
import ctypes
import re
import struct
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nybble.errors import BuildError
from nybble.ops._schema import SCHEMAS

# Numbers of torch's DeviceType and ScalarType; -1 for any other, which no op takes.
CPU, CUDA = 0, 1
DTYPES: dict[torch.dtype, int] = {
    getattr(torch, name): number
    for name, number in {
        "uint8": 0, "int8": 1, "int16": 2, "int32": 3, "int64": 4, "float16": 5, "float32": 6, "float64": 7,
        "complex32": 8, "complex64": 9, "complex128": 10, "bool": 11, "bfloat16": 15, "float8_e5m2": 23,
        "float8_e4m3fn": 24, "float8_e5m2fnuz": 25, "float8_e4m3fnuz": 26, "uint16": 27, "uint32": 28, "uint64": 29,
    }.items()
    if hasattr(torch, name)
}  # fmt: skip
DTYPE_OF = {number: dtype for dtype, number in DTYPES.items()}
# Type in a schema to the letter for it in nybble_call.
KINDS = {"Tensor": "T", "int": "i", "float": "f", "bool": "b", "ScalarType": "s", "int[]": "l"}
ARGUMENT = re.compile(r"(\w+(?:\[\])?)(?:\(\w!\))?(\??) (\w+)(?:=(.+))?")


class Call:
    """One running op: the tensors both sides know by number, and what an answer's numbers lie in."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.answer = array("q")
        self.error: BaseException | None = None
        self.device: int | None = None  # the current one before the op, where the op changed it

    def describe(self, t: Tensor) -> list[int]:
        """``read_tensor`` in the library reads this."""
        self.tensors.append(t)
        shape = t.shape
        return [
            len(self.tensors) - 1,
            t.data_ptr(),
            DTYPES.get(t.dtype, -1),
            CPU if t.is_cpu else CUDA if t.is_cuda else -1,
            t.get_device(),
            len(shape),
            *shape,
            *t.stride(),
        ]

    def close(self) -> None:
        if self.device is not None:
            torch.cuda.set_device(self.device)


Answer = Callable[[Call, Any], "list[int]"]


def _empty(call: Call, at: Any) -> list[int]:
    dtype, device, index, dim = at[:4]
    where = torch.device("cuda", index) if device == CUDA else "cpu"
    return call.describe(torch.empty(at[4 : 4 + dim], dtype=DTYPE_OF[dtype], device=where))


def _contiguous(call: Call, at: Any) -> list[int]:
    return call.describe(call.tensors[at[0]].contiguous())


def _copy(call: Call, at: Any) -> list[int]:
    with torch.no_grad():
        return call.describe(call.tensors[at[0]].copy_(call.tensors[at[1]]))


def _narrow(call: Call, at: Any) -> list[int]:
    return call.describe(call.tensors[at[0]].narrow(*at[1:4]))


def _reshape(call: Call, at: Any) -> list[int]:
    return call.describe(call.tensors[at[0]].reshape(at[2 : 2 + at[1]]))


def _linear(call: Call, at: Any) -> list[int]:
    x, weight, bias, y = (None if i < 0 else call.tensors[i] for i in at[:4])
    return call.describe(torch.ops.aten.linear.out(x, weight, bias, out=y))


def _device(call: Call, at: Any) -> list[int]:
    if call.device is None:
        call.device = torch.cuda.current_device()
    torch.cuda.set_device(at[0])
    return [at[0]]


def _stream(call: Call, at: Any) -> list[int]:
    return [torch.cuda.current_stream(at[0]).cuda_stream]


ANSWERS: dict[bytes, Answer] = {
    b"empty": _empty,
    b"contiguous": _contiguous,
    b"copy": _copy,
    b"narrow": _narrow,
    b"reshape": _reshape,
    b"linear": _linear,
    b"device": _device,
    b"stream": _stream,
}
_running = threading.local()  # .call: the library asks in the thread that called it
_ASK = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64))


@_ASK
def _ask(what: bytes, numbers: Any) -> int | None:
    """Answers the library: the address of the numbers, or ``None`` after an error, which the op raises when it is back."""
    call: Call = _running.call
    try:
        call.answer = array("q", ANSWERS[what](call, numbers))
        return call.answer.buffer_info()[0]
    except BaseException as error:
        call.error = error
        return None


def _bits(x: float) -> int:
    bits: int = struct.unpack("q", struct.pack("d", x))[0]
    return bits


# How a value of each kind goes over.
WRITERS: dict[str, Callable[[Call, Any], list[int]]] = {
    "T": Call.describe,
    "i": lambda call, value: [value],
    "f": lambda call, value: [_bits(value)],
    "b": lambda call, value: [value],
    "s": lambda call, value: [DTYPES.get(value, -1)],
    "l": lambda call, value: [len(value), *value],
}


def parse(schema: str) -> tuple[str, list[Any], int]:
    """The kinds of a schema's arguments, the values of those that have defaults (the last ones), the number of results.

    >>> parse("(Tensor(a!) x, Tensor? weight, float eps=0.5) -> ()")
    ('T?Tf', [0.5], 0)
    """
    arguments, _, results = schema.partition(" -> ")
    kinds, defaults = "", []
    for part in arguments[1:-1].split(", "):
        found = ARGUMENT.fullmatch(part)
        assert found, part
        kinds += found[2] + KINDS[found[1]]
        if found[4] is not None:
            defaults.append(ast.literal_eval(found[4]))
    return kinds, defaults, results.count("Tensor")


class Library:
    """A library file used through its C functions. In one process a file serves either these or the stable ABI."""

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        self._call = self._functions.nybble_call
        self._call.restype = ctypes.c_char_p
        self._call.argtypes = [
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
        ]
        self._functions.nybble_kernel.restype = ctypes.c_void_p
        use = self._functions.nybble_use_python
        use.restype = ctypes.c_bool
        if not use(_ask):
            raise BuildError(f"{path} is in use through torch's stable ABI in this process")

    def kernel(self, op: str, device: str) -> Callable[..., Any] | None:
        """The op as a function of its schema's arguments; ``None`` where the library has none for ``CPU`` or ``CUDA``."""
        address = self._functions.nybble_kernel(f"{device}.{op}".encode())
        if address is None:
            return None
        kinds, defaults, results = parse(SCHEMAS[op])
        steps = [(kind[0] == "?", WRITERS[kind[-1]]) for kind in re.findall(r"\??\w", kinds)]
        text = kinds.encode()

        def run(*arguments: Any) -> Any:
            missing = len(steps) - len(arguments)
            if missing:
                arguments = (*arguments, *defaults[len(defaults) - missing :])
            call, numbers = Call(), array("q")
            for (optional, write), value in zip(steps, arguments, strict=True):
                if optional:
                    numbers.append(value is not None)
                    if value is None:
                        continue
                numbers.extend(write(call, value))
            return self._run(call, address, text, numbers, results)

        return run

    def _run(self, call: Call, address: int, kinds: bytes, numbers: Any, results: int) -> Any:
        tokens = array("q", bytes(8 * results))
        _running.call = call
        try:
            wrong = self._call(
                address,
                kinds,
                torch.get_num_threads(),
                numbers.buffer_info()[0],
                results,
                tokens.buffer_info()[0],
            )
        finally:
            _running.call = None
            call.close()
        if call.error is not None:
            raise call.error
        if wrong is not None:
            raise RuntimeError(wrong.decode())
        made = [call.tensors[token] for token in tokens]
        return made[0] if results == 1 else tuple(made) if made else None
