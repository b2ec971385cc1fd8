"""AWQ linear layers, 4 bits, in the three layouts that are in use. See ``docs/formats/awq.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.errors import FormatError
from nybble.formats.base import Checker, LinearWeights, pack_nibbles, unpack_nibbles
from nybble.formats.config import QuantConfig
from nybble.ops.packed import PackedMatrix, make_packed

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # column of each nibble in the gemm layout
HALVES = (torch.float16, torch.bfloat16)


def zeros_width(K: int, group_size: int) -> int:
    """Words of zeros a row in the gemv layout: enough for ``K // group_size`` nibbles, rounded as
    its kernels read."""
    step = 1 if group_size >= 128 else 2 if group_size == 64 else 4
    words = -(-(K // group_size) // 8)
    return -(-words // step) * step


@dataclass(frozen=True, eq=False)
class _AwqLinear(LinearWeights):
    """What the layouts share: ``W[k, n] = (code[k, n] - zero[g, n]) * scale[g, n]``, ``g = k //
    group_size``."""

    def codes(self) -> Tensor:
        """uint8 ``[K, N]``."""
        raise NotImplementedError

    def scale_rows(self) -> Tensor:
        """``[G, N]`` without padding."""
        raise NotImplementedError

    def zero_rows(self) -> Tensor:
        """float32 ``[G, N]`` without padding."""
        raise NotImplementedError

    @property
    def groups(self) -> int:
        """Number of scale groups."""
        return self.scale_rows().shape[0]

    def to_packed(self) -> PackedMatrix:
        """See :meth:`LinearWeights.to_packed`."""
        scales = self.scale_rows()
        G = scales.shape[0]
        group = torch.arange(self.K) // (self.K // G)
        bias: Tensor | None = self.tensors().get("bias")
        bits = torch.full((G,), 4)
        return make_packed(
            self.codes(), scales.half(), bits, group, zeros=self.zero_rows(), bias=bias
        )


@dataclass(frozen=True, eq=False)
class AwqGemmLinear(_AwqLinear):
    """The layout of nearly all AWQ checkpoints: packed along the outputs, nibbles in the order 0 2
    4 6 1 3 5 7."""

    qweight: Tensor  # int32 [K, N/8]: nibble i of word c is column 8c + ORDER[i]
    qzeros: Tensor  # int32 [G, N/8], packed the same way
    scales: Tensor  # float [G, N]
    bias: Tensor | None = None  # float [N]
    group_size: int | None = None  # what the configuration says; None: unknown
    key: str = ""

    @property
    def K(self) -> int:
        return self.qweight.shape[0]

    @property
    def N(self) -> int:
        return self.qweight.shape[1] * 8

    def validate(self) -> None:
        check = Checker(self.key)
        check.tensor("qweight", self.qweight, (torch.int32,), (None, None))
        check.tensor("scales", self.scales, (*HALVES, torch.float32), (None, self.N))
        G = self.scales.shape[0]
        check.tensor("qzeros", self.qzeros, (torch.int32,), (G, self.N // 8))
        _check_scales(check, self.scales)
        check.bias(self.bias, self.N)
        _check_groups(check, self.K, G, self.group_size)

    def codes(self) -> Tensor:
        return unpack_nibbles(self.qweight, ORDER)

    def scale_rows(self) -> Tensor:
        return self.scales

    def zero_rows(self) -> Tensor:
        return unpack_nibbles(self.qzeros, ORDER).float()

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None, key: str = ""
    ) -> AwqGemmLinear:
        """Pack codes uint8 ``[K, N]``, scales ``[G, N]`` and zeros uint8 ``[G, N]``; raises
        FormatError if it cannot."""
        _check_encodable(key, codes, zeros, 1)
        linear = cls(pack_nibbles(codes, ORDER), pack_nibbles(zeros, ORDER), scales, bias, key=key)
        linear.validate()
        return linear


@dataclass(frozen=True, eq=False)
class AwqGemvLinear(_AwqLinear):
    """Packed along the inputs, nibbles in order; zeros and scales a row an output, padded."""

    qweight: Tensor  # int32 [N, K/8]: nibble i of word c is input 8c + i
    qzeros: Tensor  # int32 [N, zw]: nibble i of word j is the zero of group 8j + i
    scales: Tensor  # float [N, 8*zw]
    bias: Tensor | None = None  # float [N]
    group_size: int = 128
    key: str = ""

    @property
    def K(self) -> int:
        return self.qweight.shape[1] * 8

    @property
    def N(self) -> int:
        return self.qweight.shape[0]

    @property
    def groups(self) -> int:
        return self.K // self.group_size

    def validate(self) -> None:
        check = Checker(self.key)
        check.tensor("qweight", self.qweight, (torch.int32,), (None, None))
        size = _real_group(self.K, self.group_size)
        if size < 32 or self.K % size:
            raise check.fail("qweight", f"inputs in whole groups of {size} (at least 32)", self.K)
        zw = zeros_width(self.K, size)
        check.tensor("qzeros", self.qzeros, (torch.int32,), (self.N, zw))
        check.tensor("scales", self.scales, (*HALVES, torch.float32), (self.N, 8 * zw))
        _check_scales(check, self.scales)
        check.bias(self.bias, self.N)

    def codes(self) -> Tensor:
        return unpack_nibbles(self.qweight).t().contiguous()

    def scale_rows(self) -> Tensor:
        return self.scales[:, : self.groups].t().contiguous()

    def zero_rows(self) -> Tensor:
        return unpack_nibbles(self.qzeros)[:, : self.groups].t().float().contiguous()

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None, key: str = ""
    ) -> AwqGemvLinear:
        """Pack codes uint8 ``[K, N]``, scales ``[G, N]`` and zeros uint8 ``[G, N]``; raises
        FormatError if it cannot."""
        _check_encodable(key, codes, zeros, 8)
        K, G = codes.shape[0], scales.shape[0]
        pad = 8 * zeros_width(K, K // G) - G
        wide = torch.nn.functional.pad(zeros.t(), (0, pad)).contiguous()
        linear = cls(
            pack_nibbles(codes.t().contiguous()),
            pack_nibbles(wide),
            torch.nn.functional.pad(scales.t(), (0, pad)).contiguous(),
            bias,
            K // G,
            key,
        )
        linear.validate()
        return linear


@dataclass(frozen=True, eq=False)
class AwqV2Linear(_AwqLinear):
    """llm-awq's interleaved layout: four outputs a row, stripes of 64 inputs, ``W = code * scale +
    scaled_zero``.

    In AutoAWQ's ``gemv_fast`` checkpoints the same tensor ``scaled_zeros`` is called ``qzeros``;
    ``zeros_name`` keeps that.
    """

    qweight: Tensor  # int16 [N/4, K]
    scales: Tensor  # half [>= G, N]; the rows past G are padding
    scaled_zeros: Tensor  # half, as scales: minus scale * zero
    bias: Tensor | None = None  # float [N]
    group_size: int = 128
    zeros_name: str = "scaled_zeros"
    key: str = ""

    @property
    def K(self) -> int:
        return self.qweight.shape[1]

    @property
    def N(self) -> int:
        return self.qweight.shape[0] * 4

    @property
    def groups(self) -> int:
        return self.K // self.group_size

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`LinearWeights.tensors`."""
        return {
            self.zeros_name if k == "scaled_zeros" else k: v for k, v in super().tensors().items()
        }

    def validate(self) -> None:
        check = Checker(self.key)
        check.tensor("qweight", self.qweight, (torch.int16,), (None, None))
        size = _real_group(self.K, self.group_size)
        if self.K % 64 or size < 32 or self.K % size:
            raise check.fail(
                "qweight",
                f"inputs in stripes of 64 and in whole groups of {size} (at least 32)",
                self.K,
            )
        if self.N % 8:
            raise check.fail("qweight", "outputs in eights", self.N)
        check.tensor("scales", self.scales, HALVES, (None, self.N))
        rows = self.scales.shape[0]
        padded = 8 * zeros_width(self.K, size)
        if not self.groups <= rows <= padded:
            raise check.fail("scales", f"{self.groups} groups, padded to at most {padded}", rows)
        check.tensor(self.zeros_name, self.scaled_zeros, (self.scales.dtype,), (rows, self.N))
        _check_scales(check, self.scales)
        check.finite(self.zeros_name, self.scaled_zeros)
        if bool(((self.scale_rows() == 0) & (self.scaled_zeros[: self.groups] != 0)).any()):
            raise check.fail("scales", "a scale other than 0 beside a scaled zero", "0")
        check.bias(self.bias, self.N)

    def codes(self) -> Tensor:
        rows, K = self.qweight.shape
        # word (n4, 64 kt + 16 r + 8 h + t), nibble s  ->  row 4 n4 + r, input 64 kt + 32 h + 8 s +
        # t
        words = self.qweight.view(rows, K // 64, 4, 2, 8).to(torch.int32)
        out = torch.empty(rows, 4, K // 64, 2, 4, 8, dtype=torch.uint8)
        for s in range(4):
            out[:, :, :, :, s] = ((words >> (4 * s)) & 15).permute(0, 2, 1, 3, 4).to(torch.uint8)
        return out.view(rows * 4, K).t().contiguous()

    def scale_rows(self) -> Tensor:
        return self.scales[: self.groups]

    def zero_rows(self) -> Tensor:
        """``-scaled_zeros / scales``, float32 and not rounded: the product was, and that is part
        of the weights."""
        scale = self.scale_rows().float()
        quotient = -self.scaled_zeros[: self.groups].float() / torch.where(scale == 0, 1, scale)
        return torch.where(scale == 0, 0, quotient)

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None, key: str = ""
    ) -> AwqV2Linear:
        """Pack codes uint8 ``[K, N]``, scales ``[G, N]`` and zeros uint8 ``[G, N]``; raises
        FormatError if it cannot."""
        _check_encodable(key, codes, zeros, 64)
        (K, N), G = codes.shape, scales.shape[0]
        if N % 4:
            raise Checker(key).fail("qweight", "outputs in fours", N)
        source = codes.t().reshape(N // 4, 4, K // 64, 2, 4, 8).to(torch.int32)
        words = torch.zeros(N // 4, K // 64, 4, 2, 8, dtype=torch.int32)
        for s in range(4):
            words |= source[:, :, :, :, s].permute(0, 2, 1, 3, 4) << (4 * s)
        signed = words - (
            (words & 0x8000) << 1
        )  # into int16's range, so that the conversion is exact
        pad = (0, 0, 0, 8 * zeros_width(K, K // G) - G)
        scaled = -(scales.float() * zeros.float()).to(scales.dtype)
        linear = cls(
            signed.to(torch.int16).view(N // 4, K),
            torch.nn.functional.pad(scales, pad),
            torch.nn.functional.pad(scaled, pad),
            bias,
            K // G,
            key=key,
        )
        linear.validate()
        return linear


def awq_linear(
    key: str, found: Mapping[str, Tensor], quant: QuantConfig | None, in_features: int | None = None
) -> LinearWeights:
    """The layer ``key`` from its tensors, by their shapes: ``backend`` and ``version`` of
    configurations are often wrong.

    The gemv layout and v2 do not tell the group size, so it comes from ``quant`` (128 without one).
    """
    check = Checker(key)
    for name in ("qweight", "scales"):
        if name not in found:
            raise check.fail(name, "a tensor", "none")
    weight, scales, bias = found["qweight"], found["scales"], found.get("bias")
    zeros_name = "scaled_zeros" if "scaled_zeros" in found else "qzeros"
    if zeros_name not in found:
        raise FormatError(
            f"{key}.qzeros: expected zero points, found none; nybble does not read AWQ without "
            "them."
        )
    zeros = found[zeros_name]
    if weight.dim() != 2 or scales.dim() != 2 or weight.numel() == 0:
        raise check.fail(
            "qweight",
            "two sizes each here and in scales",
            f"{list(weight.shape)}, {list(scales.shape)}",
        )
    size = None if quant is None else quant.group_size
    if zeros.is_floating_point():
        group = _real_group(weight.shape[1], size or 128)
        return AwqV2Linear(weight, scales, zeros, bias, group, zeros_name, key)
    gemm = weight.shape[1] * 8 == scales.shape[1]
    gemv = weight.shape[0] == scales.shape[0]
    if gemm and gemv:  # K = G and N = 8 zw: only a tiny layer; the configuration settles it
        gemv = quant is not None and quant.version == "gemv"
    if gemv:
        return AwqGemvLinear(
            weight, zeros, scales, bias, _real_group(weight.shape[1] * 8, size or 128), key
        )
    return AwqGemmLinear(weight, zeros, scales, bias, size, key)


def _real_group(K: int, size: int) -> int:
    return K if size == -1 else size


def _check_scales(check: Checker, scales: Tensor) -> None:
    check.finite("scales", scales)
    if bool((scales.abs() > 65504).any()):
        raise check.fail("scales", "numbers a float16 can hold", "larger ones")


def _check_groups(check: Checker, K: int, G: int, size: int | None) -> None:
    if G > K or K % G:
        raise check.fail("scales", f"a number of groups that divides {K} inputs", G)
    if size is not None and _real_group(K, size) != K // G:
        raise check.fail("scales", f"groups of {_real_group(K, size)} inputs", K // G)


def _check_encodable(key: str, codes: Tensor, zeros: Tensor, step: int) -> None:
    check = Checker(key)
    if bool((codes > 15).any()) or bool((zeros > 15).any()):
        raise check.fail(
            "qweight", "codes and zeros of 0 to 15", max(int(codes.max()), int(zeros.max()))
        )
    if codes.shape[0] % step or codes.shape[0] % zeros.shape[0]:
        raise check.fail(
            "qweight",
            f"inputs in {step}s and in whole groups",
            f"{codes.shape[0]}, {zeros.shape[0]} groups",
        )
