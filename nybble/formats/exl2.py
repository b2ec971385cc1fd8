"""EXL2 linear layers: mixed widths, rows sorted by importance, 4-bit group scales. See
``docs/formats/exl2.md``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.errors import FormatError
from nybble.formats.base import (
    Checker,
    LinearWeights,
    pack_nibbles,
    pack_words,
    unpack_nibbles,
    unpack_words,
)
from nybble.ops.packed import PackedMatrix, make_packed

WIDTHS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, eq=False)
class Exl2Linear(LinearWeights):
    """``W[perm[k], n] = (code[k, n] - 2^(b-1)) * scale[g, n]`` with ``perm = argsort(q_invperm)``.

    ``scale[g, n] = h((n4 + 1)^2 * h(q_scale_max[g] / 256))``, ``n4`` the nibble of ``q_scale`` and
    ``h`` rounding to float16 with subnormals kept.
    """

    q_weight: Tensor  # int32 [QR, N]: one LSB-first stream of codes a column, group after group
    # int32 [G, N/8]: nibble n % 8 of word n // 8 is the scale index of column n, minus one
    q_scale: Tensor
    q_scale_max: Tensor  # float16 [G]: the largest scale of each group
    q_groups: Tensor  # int16 [2G]: pairs (bits, first row of q_weight)
    q_invperm: Tensor  # int32 [K]: packed row that holds each input feature
    bias: Tensor | None = None  # float [N]
    key: str = ""

    @property
    def K(self) -> int:
        return self.q_invperm.shape[0]

    @property
    def N(self) -> int:
        return self.q_weight.shape[1]

    def layout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Width, first word row and number of rows of each group: three int64 ``[G]``."""
        pairs = self.q_groups.view(-1, 2).long()
        bits, first = pairs[:, 0], pairs[:, 1]
        words = torch.diff(first, append=torch.tensor([self.q_weight.shape[0]]))
        return bits, first, words * 32 // bits

    def validate(self) -> None:
        check = Checker(self.key)
        check.tensor("q_weight", self.q_weight, (torch.int32,), (None, None))
        check.tensor("q_groups", self.q_groups, (torch.int16,), (None,))
        check.tensor("q_invperm", self.q_invperm, (torch.int32,), (None,))
        if self.q_groups.shape[0] % 2:
            raise check.fail(
                "q_groups", "pairs of bits and row", f"{self.q_groups.shape[0]} numbers"
            )
        G = self.q_groups.shape[0] // 2
        if self.N % 8:
            raise check.fail("q_weight", "a number of columns that is a multiple of 8", self.N)
        check.tensor("q_scale", self.q_scale, (torch.int32,), (G, self.N // 8))
        check.tensor("q_scale_max", self.q_scale_max, (torch.float16,), (G,))
        check.finite("q_scale_max", self.q_scale_max)
        check.bias(self.bias, self.N)
        self._validate_groups(check)
        self._validate_perm(check)

    def _validate_groups(self, check: Checker) -> None:
        pairs = self.q_groups.view(-1, 2).long()
        bits, first = pairs[:, 0], pairs[:, 1]
        for width in sorted(set(bits.tolist())):
            check.supported_bits("q_groups", width, WIDTHS)
        words = torch.diff(first, append=torch.tensor([self.q_weight.shape[0]]))
        if int(first[0]) != 0 or bool((words <= 0).any()):
            expected = f"rows that rise from 0 and stay below {self.q_weight.shape[0]}"
            raise check.fail("q_groups", expected, first[:16].tolist())
        if bool((words * 32 % bits).any()):
            raise check.fail(
                "q_groups", "groups of whole rows", "a group whose words end inside a code"
            )
        rows = int((words * 32 // bits).sum())
        if rows != self.K:
            raise check.fail(
                "q_groups", f"groups of {self.K} rows together, as q_invperm has", rows
            )

    def _validate_perm(self, check: Checker) -> None:
        if self.K > 65536:
            raise check.fail("q_invperm", "at most 65536 rows", self.K)
        low, high = int(self.q_invperm.min()), int(self.q_invperm.max())
        if low < 0 or high >= self.K:
            raise check.fail("q_invperm", f"rows of 0 to {self.K - 1}", low if low < 0 else high)
        if bool((torch.bincount(self.q_invperm.long(), minlength=self.K) != 1).any()):
            raise check.fail("q_invperm", "each row once", "a row twice")

    def codes(self) -> Tensor:
        """uint8 ``[K, N]``, in packed order."""
        bits, first, _ = self.layout()
        # streams of neighbours with one width just follow each other, so they are read in one go
        widths, counts = torch.unique_consecutive(bits, return_counts=True)
        bounds = [*first.tolist(), self.q_weight.shape[0]]
        parts, group = [], 0
        for width, count in zip(widths.tolist(), counts.tolist(), strict=True):
            parts.append(unpack_words(self.q_weight[bounds[group] : bounds[group + count]], width))
            group += count
        return torch.cat(parts)

    def scales(self, prescale: float = 1.0) -> Tensor:
        """float16 ``[G, N]``; ``prescale`` multiplies them where the format does, before the first
        rounding."""
        index = unpack_nibbles(self.q_scale).float() + 1
        largest = (self.q_scale_max.float() * (prescale / 256)).half()
        return (index * index * largest.float()[:, None]).half()

    def to_packed(self, prescale: float = 1.0) -> PackedMatrix:
        """See :meth:`LinearWeights.to_packed`; ``prescale`` as in :meth:`scales`."""
        bits, _, rows = self.layout()
        groups = torch.repeat_interleave(torch.arange(len(bits)), rows)
        perm = torch.argsort(self.q_invperm.long())
        return make_packed(
            self.codes(), self.scales(prescale), bits, groups, perm=perm, bias=self.bias
        )

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale_index: Tensor,
        scale_max: Tensor,
        bits: Tensor,
        rows: Tensor,
        invperm: Tensor,
        bias: Tensor | None = None,
        key: str = "",
    ) -> Exl2Linear:
        """Pack a quantized matrix.

        Args:
            codes: uint8 ``[K, N]``, rows in packed order.
            scale_index: uint8 ``[G, N]``, 0 to 15: the stored index (the scale's root in
                sixteenths, minus one).
            scale_max: float16 ``[G]``, the largest scale of each group.
            bits: int ``[G]``, width of each group.
            rows: int ``[G]``, rows of each group; ``rows * bits`` must be a multiple of 32.
            invperm: int ``[K]``, packed row of each input feature.
            bias: float ``[N]`` or None.
            key: the layer's name, for messages.

        Raises FormatError for sizes or values the format cannot hold.
        """
        sizes = [int(r) for r in rows]
        if len(bits) != len(sizes):
            raise FormatError(
                f"{key}: expected a width for each of {len(sizes)} groups, got {len(bits)}."
            )
        if sum(sizes) != codes.shape[0] or bool((scale_index > 15).any()):
            got = f"{sum(sizes)} rows and indices up to {int(scale_index.max())}"
            raise FormatError(
                f"{key}: expected groups of {codes.shape[0]} rows and scale indices of 0 to 15, "
                f"got {got}."
            )
        streams = [
            pack_words(part, int(b))
            for part, b in zip(torch.split(codes, sizes), bits, strict=True)
        ]
        starts = [0]
        for stream in streams:
            starts.append(starts[-1] + stream.shape[0])
        if starts[-2] > 32767:
            raise FormatError(
                f"{key}: expected group starts below 32768, got {starts[-2]}; quantize with fewer "
                "rows."
            )
        pairs = [
            value for b, start in zip(bits, starts[:-1], strict=True) for value in (int(b), start)
        ]
        linear = cls(
            q_weight=torch.cat(streams),
            q_scale=pack_nibbles(scale_index.to(torch.uint8)),
            q_scale_max=scale_max.to(torch.float16),
            q_groups=torch.tensor(pairs, dtype=torch.int16),
            q_invperm=invperm.to(torch.int32),
            bias=bias,
            key=key,
        )
        linear.validate()
        return linear
