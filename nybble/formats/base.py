"""What every stored linear layer can do, and the bit streams that EXL2 and GPTQ share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nybble.errors import FormatError
from nybble.ops.packed import PackedMatrix


@dataclass(frozen=True, eq=False)
class LinearWeights(ABC):
    """One linear layer ``y = x @ W + bias``, ``W`` of ``[K, N]``, as its tensors lie on disk.

    A subclass is a frozen dataclass: its Tensor fields are named as the tensors are on disk,
    ``key`` names the layer in messages. Nothing is checked when it is made; :meth:`validate` does
    that, and :meth:`to_packed` expects a valid layer.
    """

    @property
    @abstractmethod
    def K(self) -> int:
        """Input features."""

    @property
    @abstractmethod
    def N(self) -> int:
        """Output features."""

    @abstractmethod
    def validate(self) -> None:
        """Check dtypes, shapes and values; raises :class:`FormatError` naming the tensor, what was
        expected, what came."""

    @abstractmethod
    def to_packed(self) -> PackedMatrix:
        """The kernels' form of the same numbers, exactly."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors as on disk, by the last part of their name (``q_weight``, ``bias`` ...)."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, with scales and indices but without the bias, over ``K * N``."""
        bias = self.tensors().get("bias")
        return 8 * (self.nbytes - (0 if bias is None else bias.nbytes)) / max(1, self.K * self.N)


class Checker:
    """The checks that all formats make; ``key`` is the layer's name and stands first in every
    message."""

    def __init__(self, key: str) -> None:
        self.key = key

    def fail(self, name: str, expected: str, got: object) -> FormatError:
        """The error for tensor ``name``."""
        where = f"{self.key}.{name}" if self.key else name
        return FormatError(
            f"{where}: expected {expected}, got {got}. The checkpoint is damaged or of another "
            "format."
        )

    def tensor(
        self, name: str, value: Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int | None]
    ) -> None:
        """``value`` has one of ``dtypes`` and the ``shape``; None in it stands for any size >=
        1."""
        if value.dtype not in dtypes:
            raise self.fail(name, " or ".join(str(d)[6:] for d in dtypes), str(value.dtype)[6:])
        same = value.dim() == len(shape)
        if not same or any(
            got < 1 if size is None else got != size
            for got, size in zip(value.shape, shape, strict=False)
        ):
            text = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.fail(name, f"shape [{text}]", list(value.shape))

    def finite(self, name: str, value: Tensor) -> None:
        """No NaN and no infinity."""
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise self.fail(name, "finite numbers", f"{bad} that are NaN or infinite")

    def bias(self, value: Tensor | None, N: int) -> None:
        """``[N]`` floating point, or absent."""
        if value is not None:
            self.tensor("bias", value, (torch.float16, torch.bfloat16, torch.float32), (N,))
            self.finite("bias", value)

    def supported_bits(self, name: str, bits: int, allowed: Sequence[int]) -> None:
        """``bits`` is one the format has."""
        if bits not in allowed:
            raise self.fail(name, f"a width of {', '.join(map(str, allowed))} bits", bits)


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """Codes of one LSB-first bit stream a column: int32 ``[R, N]`` to uint8 ``[R * 32 / bits, N]``
    (rounded down).

    Code ``r`` is the stream's bits ``[r*bits, (r+1)*bits)``; stream bit ``s`` is bit ``s % 32`` of
    word ``s // 32``.

    >>> unpack_words(torch.tensor([[0x4D6F81A3]], dtype=torch.int32), 4).flatten().tolist()
    [3, 10, 1, 8, 15, 6, 13, 4]
    """
    R, N = words.shape
    period = bits if 32 % bits else 1  # words after which a code starts on a word's first bit again
    per = 32 * period // bits
    whole = -(-R // period)
    if whole * period != R:
        words = torch.nn.functional.pad(words, (0, 0, 0, whole * period - R))
    source = words.view(whole, period, N)
    out = torch.empty(whole, per, N, dtype=torch.uint8)
    mask = (1 << bits) - 1
    for i in range(per):
        word, shift = divmod(i * bits, 32)
        low = source[:, word] >> shift  # arithmetic: the sign's copies are masked off below
        if shift + bits > 32:
            low = (low & ((1 << (32 - shift)) - 1)) | (source[:, word + 1] << (32 - shift))
        out[:, i] = (low & mask).to(torch.uint8)
    return out.view(whole * per, N)[: R * 32 // bits]


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`unpack_words`: uint8 ``[R, N]`` to int32 ``[R * bits / 32, N]``.

    Raises FormatError where ``R * bits`` is no multiple of 32, or a code has more than ``bits``
    bits.

    >>> codes = torch.tensor([3, 10, 1, 8, 15, 6, 13, 4], dtype=torch.uint8)
    >>> pack_words(codes[:, None], 4).item() == 0x4D6F81A3
    True
    """
    R, N = codes.shape
    if R * bits % 32:
        raise FormatError(
            f"pack_words: expected rows * bits to be a multiple of 32, got {R} rows of {bits} bits."
        )
    if bits < 8 and bool((codes >> bits).any()):
        raise FormatError(f"pack_words: expected codes below {1 << bits}, got {int(codes.max())}.")
    period = bits if 32 % bits else 1
    per = 32 * period // bits
    whole = -(-R // per)
    if whole * per != R:
        codes = torch.nn.functional.pad(codes, (0, 0, 0, whole * per - R))
    source = codes.view(whole, per, N)
    out = torch.zeros(whole, period, N, dtype=torch.int32, device=codes.device)
    for i in range(per):
        word, shift = divmod(i * bits, 32)
        code = source[:, i].to(torch.int32)
        out[:, word] |= code << shift  # bits beyond 31 fall off
        if shift + bits > 32:
            out[:, word + 1] |= code >> (32 - shift)
    return out.view(whole * period, N)[: R * bits // 32].contiguous()


def unpack_nibbles(words: Tensor, order: Sequence[int] = range(8)) -> Tensor:
    """int32 ``[R, C]`` to uint8 ``[R, 8*C]``: value ``8*c + order[i]`` is nibble ``i`` of word
    ``c``."""
    R, C = words.shape
    out = torch.empty(R, C, 8, dtype=torch.uint8)
    for i, place in enumerate(order):
        out[:, :, place] = ((words >> (4 * i)) & 15).to(torch.uint8)
    return out.view(R, 8 * C)


def pack_nibbles(values: Tensor, order: Sequence[int] = range(8)) -> Tensor:
    """The inverse of :func:`unpack_nibbles`: uint8 ``[R, 8*C]`` to int32 ``[R, C]``."""
    R, width = values.shape
    source = values.view(R, width // 8, 8)
    out = torch.zeros(R, width // 8, dtype=torch.int32, device=values.device)
    for i, place in enumerate(order):
        out |= source[:, :, place].to(torch.int32) << (4 * i)
    return out
