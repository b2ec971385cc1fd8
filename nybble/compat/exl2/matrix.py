"""Quantized matrices behind handles: ``make_q_matrix``, ``make_q_matrix_split`` and ``free_q_matrix``.

A tensor on the meta device stands for an absent one. What differs from the original is in ``docs/compat/matrix.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args, _handles
from nybble.errors import FormatError
from nybble.formats.base import LinearWeights
from nybble.formats.exl2 import Exl2Linear
from nybble.formats.gptq import GptqLinear
from nybble.ops import PackedMatrix


@dataclass(frozen=True, eq=False)
class QMatrix:
    """What a matrix handle stands for: its own copy of the numbers, in the kernels' layout."""

    packed: PackedMatrix
    device: torch.device

    @property
    def K(self) -> int:
        """Input features."""
        return self.packed.K

    @property
    def N(self) -> int:
        """Output features."""
        return self.packed.N

    def product(self, x: Tensor) -> Tensor:
        """``x @ W``, plus the bias where there is one: float16 ``[M, K]`` to float16 ``[M, N]``.

        Summed in float32 and rounded once.
        """
        return ops.qmatmul(x, self.packed)


def make_q_matrix(
    q_weight: Tensor,
    q_perm: Tensor,
    q_invperm: Tensor,
    q_scale: Tensor,
    q_scale_max: Tensor,
    q_groups: Tensor,
    q_group_map: Tensor,
    gptq_qzeros: Tensor,
    gptq_scales: Tensor,
    gptq_g_idx: Tensor,
    bias: Tensor,
    temp_dq: Tensor,
    max_dq_rows: int,
) -> int:
    """A handle for an EXL2 matrix (``q_scale`` given) or a GPTQ one of 4 bits (``gptq_qzeros`` given).

    Args:
        q_weight: int32, EXL2 ``[words, N]``, GPTQ ``[K/8, N]``, as on disk; not changed.
        q_perm, q_invperm: int16 ``[K]`` read as unsigned, or absent. With ``gptq_g_idx`` they are *written*: the order
            that brings each group's rows together, and its inverse.
        q_scale: int32 ``[G, N/8]``.
        q_scale_max: float16 ``[G]``, divided by 256 already.
        q_groups: int16 ``[2G]``.
        q_group_map: int16 ``[2K]``; only its size is used.
        gptq_qzeros: int32 ``[G, N/8]``.
        gptq_scales: float16 ``[G, N]``.
        gptq_g_idx: int32 ``[K]``, or absent for groups in order.
        bias: float16 ``[N]``, or absent.
        temp_dq, max_dq_rows: checked against each other, else unused: products need no scratch.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for what is no tensor or no int.
    """
    weight = _args.dtype("q_weight", q_weight, "kInt")
    perm, invperm = (
        _optional("q_perm", q_perm, "kShort"),
        _optional("q_invperm", q_invperm, "kShort"),
    )
    if (0 if perm is None else perm.numel()) != (0 if invperm is None else invperm.numel()):
        raise RuntimeError(
            "q_perm and q_invperm must both be given, with the same size, or both be absent"
        )
    scale, zeros = (
        _optional("q_scale", q_scale, "kInt"),
        _optional("gptq_qzeros", gptq_qzeros, "kInt"),
    )
    if (scale is None) == (zeros is None):
        raise RuntimeError("make_q_matrix: expected either q_scale (EXL2) or gptq_qzeros (GPTQ)")
    given_bias = _optional("bias", bias, "kHalf")
    if scale is not None:
        packed = _exl2(
            weight,
            perm,
            scale,
            _args.dtype("q_scale_max", q_scale_max, "kHalf"),
            _args.dtype("q_groups", q_groups, "kShort"),
            _args.dtype("q_group_map", q_group_map, "kShort"),
            given_bias,
        )
    else:
        assert zeros is not None
        scales = _args.dtype("gptq_scales", gptq_scales, "kHalf")
        g_idx = _optional("gptq_g_idx", gptq_g_idx, "kInt")
        packed = _gptq(weight, zeros, scales, g_idx, given_bias)
    _check_scratch(temp_dq, max_dq_rows, packed)
    if scale is None:
        _write_order(g_idx, perm, invperm, packed.K)
    return _handles.new(QMatrix(packed.to(weight.device), weight.device))


def make_q_matrix_split(
    q_weight: Tensor,
    q_perm: Tensor,
    q_invperm: Tensor,
    q_scale: Tensor,
    q_scale_max: Tensor,
    q_groups: Tensor,
    q_group_map: Tensor,
    gptq_qzeros: Tensor,
    gptq_scales: Tensor,
    gptq_g_idx: Tensor,
    bias: Tensor,
    temp_dq: Tensor,
    max_dq_rows: int,
) -> int:
    """:func:`make_q_matrix` for columns cut out of an EXL2 matrix's tensors; GPTQ is refused.

    Raises as :func:`make_q_matrix` does.
    """
    gptq = {"gptq_qzeros": gptq_qzeros, "gptq_scales": gptq_scales, "gptq_g_idx": gptq_g_idx}
    for name, value in gptq.items():
        if _args.optional(name, value) is not None:
            raise RuntimeError(f"make_q_matrix_split: {name} must be absent, GPTQ cannot be split")
    return make_q_matrix(
        q_weight,
        q_perm,
        q_invperm,
        q_scale,
        q_scale_max,
        q_groups,
        q_group_map,
        gptq_qzeros,
        gptq_scales,
        gptq_g_idx,
        bias,
        temp_dq,
        max_dq_rows,
    )


def free_q_matrix(handle: int) -> None:
    """Forget a matrix; 0 is none. Raises ``RuntimeError`` for a handle that is no matrix's."""
    _handles.free(handle, QMatrix, name="free_q_matrix")


def _optional(name: str, value: Tensor, word: str) -> Tensor | None:
    """``None`` for an absent tensor, else a tensor of that dtype."""
    return None if _args.optional(name, value) is None else _args.dtype(name, value, word)


def _exl2(
    weight: Tensor,
    perm: Tensor | None,
    scale: Tensor,
    scale_max: Tensor,
    groups: Tensor,
    group_map: Tensor,
    bias: Tensor | None,
) -> PackedMatrix:
    if group_map.dim() != 1 or group_map.numel() % 2:
        raise RuntimeError(f"q_group_map has shape {list(group_map.shape)}, expected [2K]")
    order = torch.arange(group_map.numel() // 2)
    invperm = order
    if perm is not None:
        found, invperm = (perm.cpu().long() & 0xFFFF).sort()
        if not torch.equal(found, order):
            raise RuntimeError(f"q_perm is no order of {len(order)} rows, as q_group_map has")
    linear = Exl2Linear(
        q_weight=weight.cpu(),
        q_scale=scale.cpu(),
        q_scale_max=scale_max.cpu(),
        q_groups=groups.cpu(),
        q_invperm=invperm.to(torch.int32),
        bias=None if bias is None else bias.cpu(),
    )
    _validate(linear)
    return linear.to_packed(prescale=256.0)  # the caller has divided q_scale_max by 256 already


def _gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bias: Tensor | None
) -> PackedMatrix:
    G, K = scales.shape[0] if scales.dim() else 0, 8 * (qweight.shape[0] if qweight.dim() else 0)
    size = 1
    while G > 0 and size * G < K:  # the old rule: the smallest power of two that serves all rows
        size *= 2
    linear = GptqLinear(
        qweight=qweight.cpu(),
        qzeros=qzeros.cpu(),
        scales=scales.cpu(),
        g_idx=None if g_idx is None else g_idx.cpu(),
        bias=None if bias is None else bias.cpu(),
        group_size=size,
    )
    _validate(linear)
    return linear.to_packed()


def _validate(linear: LinearWeights) -> None:
    try:
        linear.validate()
    except FormatError as error:
        raise RuntimeError(f"make_q_matrix: {error}") from error


def _write_order(g_idx: Tensor | None, perm: Tensor | None, invperm: Tensor | None, K: int) -> None:
    """``q_perm`` and ``q_invperm`` as GPTQ's callers get them back."""
    if g_idx is None:
        if perm is not None:
            raise RuntimeError(
                "make_q_matrix: a GPTQ matrix takes q_perm only together with gptq_g_idx"
            )
        return
    if perm is None or invperm is None or perm.shape != (K,) or invperm.shape != (K,) or K > 65536:
        raise RuntimeError(
            f"make_q_matrix: gptq_g_idx needs q_perm and q_invperm of shape [{K}], K up to 65536"
        )
    order = torch.argsort(g_idx.cpu(), stable=True)
    perm.copy_(
        order.to(torch.int16)
    )  # beyond 32767 these wrap: the bits are those of an unsigned number
    invperm.copy_(torch.argsort(order).to(torch.int16))


def _check_scratch(temp_dq: Tensor, max_dq_rows: int, packed: PackedMatrix) -> None:
    scratch = _args.optional("temp_dq", temp_dq)
    needed = packed.N * min(_args.integer("max_dq_rows", max_dq_rows), packed.K)
    if scratch is not None and scratch.numel() < needed:
        raise RuntimeError(f"temp_dq has {scratch.numel()} elements, expected {needed} or more")
