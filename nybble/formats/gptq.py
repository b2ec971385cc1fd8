"""GPTQ linear layers: 2, 3, 4 or 8 bits, integer zeros, groups along the inputs in any order. See
``docs/formats/gptq.md``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.formats.base import Checker, LinearWeights, pack_words, unpack_words
from nybble.formats.safetensors import TensorInfo
from nybble.ops.packed import PackedMatrix, make_packed

WIDTHS = (2, 3, 4, 8)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class GptqLinear(LinearWeights):
    """``W[k, n] = scales[g, n] * (code[k, n] - zero[g, n])``, ``g = g_idx[k]``, or ``k // group``
    without it.

    ``zero`` is the stored one plus 1 (it does not wrap: a stored 15 of 4 bits means 16), or with
    ``v2`` the stored one.
    """

    qweight: Tensor  # int32 [K*bits/32, N]: one LSB-first stream of codes a column
    qzeros: Tensor  # int32 [G, N*bits/32]: one LSB-first stream of zeros a group
    scales: Tensor  # float [G, N]
    g_idx: Tensor | None = None  # int32 [K]: group of each input
    bias: Tensor | None = None  # float [N]
    bits: int = 4
    group_size: int | None = None  # what the configuration says; None: unknown
    v2: bool = False
    key: str = ""

    @property
    def K(self) -> int:
        return self.qweight.shape[0] * 32 // self.bits

    @property
    def N(self) -> int:
        return self.qweight.shape[1]

    @staticmethod
    def infer_bits(key: str, qzeros: TensorInfo, scales: TensorInfo) -> int:
        """The width, from the sizes of zeros and scales: the tensors decide, whatever the
        configuration says."""
        words = qzeros.shape[1] if len(qzeros.shape) == 2 else 0
        columns = scales.shape[1] if len(scales.shape) == 2 else 0
        bits, rest = divmod(words * 32, columns) if columns else (0, 0)
        check = Checker(key)
        if rest:
            raise check.fail("qzeros", f"[groups, {columns} * bits / 32] words", list(qzeros.shape))
        check.supported_bits("qzeros", bits, WIDTHS)
        return bits

    def validate(self) -> None:
        check = Checker(self.key)
        check.supported_bits("qweight", self.bits, WIDTHS)
        check.tensor("qweight", self.qweight, (torch.int32,), (None, None))
        check.tensor("scales", self.scales, FLOATS, (None, self.N))
        check.finite("scales", self.scales)
        if bool((self.scales.abs() > 65504).any()):
            raise check.fail("scales", "numbers a float16 can hold", "larger ones")
        if self.qweight.shape[0] * 32 % self.bits:
            raise check.fail(
                "qweight",
                f"a stream of whole {self.bits}-bit codes",
                f"{self.qweight.shape[0]} words",
            )
        if self.N * self.bits % 32:
            raise check.fail(
                "qweight", "outputs whose zeros fill whole words", f"{self.N} of {self.bits} bits"
            )
        G = self.scales.shape[0]
        check.tensor("qzeros", self.qzeros, (torch.int32,), (G, self.N * self.bits // 32))
        check.bias(self.bias, self.N)
        self._validate_groups(check, G)

    def _validate_groups(self, check: Checker, G: int) -> None:
        if G > self.K:
            raise check.fail("scales", f"at most one group an input ({self.K})", G)
        ordered = self.g_idx is None or not bool(self.g_idx.any())
        if self.group_size is not None and ordered:
            size = self.K if self.group_size == -1 else self.group_size
            if -(-self.K // size) != G:
                raise check.fail("scales", f"{-(-self.K // size)} groups of {size} inputs", G)
        elif ordered and self.K % G:
            raise check.fail("scales", f"a number of groups that divides {self.K} inputs", G)
        if self.g_idx is not None:
            check.tensor("g_idx", self.g_idx, (torch.int32, torch.int64), (self.K,))
            low, high = int(self.g_idx.min()), int(self.g_idx.max())
            if low < 0 or high >= G:
                raise check.fail("g_idx", f"groups of 0 to {G - 1}", low if low < 0 else high)

    def groups(self) -> Tensor:
        """int64 ``[K]``: the scale group of each input."""
        if self.g_idx is not None and bool(self.g_idx.any()):
            return self.g_idx.long()
        G = self.scales.shape[0]  # a g_idx of zeros alone means "in order"
        size = -(-self.K // G) if self.group_size in (None, -1) else self.group_size
        return torch.arange(self.K) // size

    def codes(self) -> Tensor:
        """uint8 ``[K, N]``, in input order."""
        return unpack_words(self.qweight, self.bits)

    def zeros(self) -> Tensor:
        """float32 ``[G, N]``: the effective zeros."""
        stored = unpack_words(self.qzeros.t().contiguous(), self.bits).t().float()
        return stored if self.v2 else stored + 1

    def to_packed(self) -> PackedMatrix:
        """See :meth:`LinearWeights.to_packed`; scales of other dtypes are rounded to float16, as
        the format's users do."""
        groups = self.groups()
        perm = None
        codes = self.codes()
        if bool(
            (groups[1:] < groups[:-1]).any()
        ):  # activation order: bring each group's rows together
            perm = torch.argsort(groups, stable=True)
            codes, groups = codes[perm], groups[perm]
        bits = torch.full((self.scales.shape[0],), self.bits)
        zeros = self.zeros()
        return make_packed(
            codes, self.scales.half(), bits, groups, zeros=zeros, perm=perm, bias=self.bias
        )

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor,
        bits: int,
        *,
        g_idx: Tensor | None = None,
        bias: Tensor | None = None,
        v2: bool = False,
        key: str = "",
    ) -> GptqLinear:
        """Pack codes uint8 ``[K, N]``, scales ``[G, N]`` and effective zeros (integers, ``[G,
        N]``).

        Zeros are 1 to 2^bits, or with ``v2`` 0 to 2^bits - 1. Raises FormatError for what the
        format cannot hold.
        """
        stored = zeros.to(torch.int16) - (0 if v2 else 1)
        if bool((stored < 0).any()) or bool((stored >> bits).any()):
            low = 0 if v2 else 1
            got = f"{int(zeros.min())} to {int(zeros.max())}"
            raise Checker(key).fail("qzeros", f"zeros of {low} to {low + (1 << bits) - 1}", got)
        linear = cls(
            qweight=pack_words(codes, bits),
            qzeros=pack_words(stored.to(torch.uint8).t().contiguous(), bits).t().contiguous(),
            scales=scales,
            g_idx=None if g_idx is None else g_idx.to(torch.int32),
            bias=bias,
            bits=bits,
            v2=v2,
            key=key,
        )
        linear.validate()
        return linear
