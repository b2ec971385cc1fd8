"""Quantized matrices behind handles, their products, and the small helpers that load them.

A tensor on the meta device stands for an absent one. What differs from the original is in ``docs/compat/matrix.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args, _handles
from nybble.errors import FormatError
from nybble.formats.base import LinearWeights, pack_nibbles, unpack_nibbles
from nybble.formats.exl2 import WIDTHS, Exl2Linear
from nybble.formats.gptq import GptqLinear
from nybble.ops import PackedMatrix

MAX_ROWS = 65536  # q_perm holds row numbers of 16 bits


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
    order = _order(q_perm, q_invperm)
    scale = _optional("q_scale", q_scale, "kInt")
    scale_max = _optional("q_scale_max", q_scale_max, "kHalf")
    groups = _optional("q_groups", q_groups, "kShort")
    group_map = _optional("q_group_map", q_group_map, "kShort")
    zeros = _optional("gptq_qzeros", gptq_qzeros, "kInt")
    scales = _optional("gptq_scales", gptq_scales, "kHalf")
    g_idx = _optional("gptq_g_idx", gptq_g_idx, "kInt")
    given_bias = _optional("bias", bias, "kHalf")
    if scale is not None and zeros is None:
        if scale_max is None or groups is None or group_map is None:
            raise RuntimeError("q_scale needs q_scale_max, q_groups and q_group_map beside it")
        packed = _exl2(weight, order, scale, scale_max, groups, group_map, given_bias)
        _check_scratch(temp_dq, max_dq_rows, packed)
    elif zeros is not None and scale is None:
        if scales is None:
            raise RuntimeError("gptq_qzeros needs gptq_scales beside it")
        packed = _gptq(weight, zeros, scales, g_idx, given_bias)
        _check_scratch(temp_dq, max_dq_rows, packed)
        _write_order(g_idx, order, packed.K)
    else:
        raise RuntimeError("make_q_matrix: expected either q_scale (EXL2) or gptq_qzeros (GPTQ)")
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


def reconstruct(handle: int, output: Tensor) -> None:
    """Write ``W``, float16 ``[K, N]`` in input order and without the bias, to ``output``."""
    matrix = _handles.get(handle, QMatrix, name="reconstruct")
    _shaped("output", _args.dtype("output", output, "kHalf"), matrix.K, matrix.N)
    output.copy_(ops.dequantize(matrix.packed, torch.float16))


def gemm_half_q_half(a: Tensor, b: int, c: Tensor, force_cuda: bool) -> None:
    """``c = a @ W``, plus the bias where there is one: float16 ``[M, K]`` to ``[M, N]``; ``force_cuda`` changes nothing."""
    matrix = _handles.get(b, QMatrix, name="gemm_half_q_half")
    _args.boolean("force_cuda", force_cuda)
    x = _rows("a", _args.dtype("a", a, "kHalf"))
    _shaped("a", x, x.shape[0], matrix.K)
    _shaped("c", _args.dtype("c", c, "kHalf"), x.shape[0], matrix.N)
    c.copy_(matrix.product(x))


def gemm_half_half_half(
    a: Tensor, b: Tensor, c: Tensor, alpha: float, beta: float, force_cublas: bool
) -> None:
    """``c = alpha * (a @ b) + beta * c`` for float16 ``[M, K]``, ``[K, N]``, ``[M, N]``; with ``beta`` 0 c is not read.

    Summed in float32 and rounded once; ``force_cublas`` changes nothing.
    """
    x = _rows("a", _args.dtype("a", a, "kHalf"))
    weight = _rows("b", _args.dtype("b", b, "kHalf"))
    _shaped("b", weight, x.shape[1], weight.shape[1])
    _shaped("c", _args.dtype("c", c, "kHalf"), x.shape[0], weight.shape[1])
    share, keep = _args.number("alpha", alpha), _args.number("beta", beta)
    _args.boolean("force_cublas", force_cublas)
    product = ops.matmul(x.float(), weight.T.contiguous()) * share
    c.copy_(product if keep == 0 else torch.add(product, c, alpha=keep))


def make_group_map(q_groups: Tensor, num_qrows: int) -> Tensor:
    """int16 ``[2K]``: for each packed row its group, and the rows left in that group counting itself.

    ``q_groups`` is int16 ``[2G]``, pairs of width and first word row; ``num_qrows`` the number of word rows.
    """
    groups = _args.dtype("q_groups", q_groups, "kShort")
    rows = _args.integer("num_qrows", num_qrows)
    if not 0 <= rows <= MAX_ROWS // 4:  # 8 bits: 4 rows a word
        raise RuntimeError(f"num_qrows is {rows}, expected 0 to {MAX_ROWS // 4}")
    if groups.dim() != 1 or groups.numel() % 2:
        raise RuntimeError(f"q_groups has shape {list(groups.shape)}, expected [2G]")
    bits, first = groups.cpu().long().view(-1, 2).unbind(1)
    words = torch.diff(first, append=torch.tensor([rows]))
    if not set(bits.tolist()) <= set(WIDTHS) or bool((words < 0).any()):
        raise RuntimeError(f"q_groups is no list of widths and rows that rise to {rows}")
    counts = words * 32 // bits
    K = int(counts.sum())
    if K > MAX_ROWS:
        raise RuntimeError(f"q_groups has groups of {K} rows together, expected up to {MAX_ROWS}")
    group = torch.repeat_interleave(torch.arange(len(counts)), counts)
    left = counts.cumsum(0)[group] - torch.arange(K)
    return torch.stack([group, left], 1).flatten().to(torch.int16)


def matrix_fp16_to_q4(source: Tensor, out: Tensor, scales: Tensor) -> None:
    """Quantize float16 numbers, seen as one row, to uint8 ``out`` and float16 ``scales``, in whole blocks of 512."""
    numbers = _args.dtype("in", source, "kHalf")
    x, codes, shares, every = _q4(numbers, _args.dtype("out", out, "kUInt8"), scales)
    ops.kv_quantize_(codes, shares, x, every, bits=4)


def matrix_q4_to_fp16(source: Tensor, scales: Tensor, out: Tensor) -> None:
    """The inverse of :func:`matrix_fp16_to_q4`, float16 numbers to ``out``; note the order of the arguments."""
    numbers = _args.dtype("out", out, "kHalf")
    x, codes, shares, every = _q4(numbers, _args.dtype("in", source, "kUInt8"), scales)
    ops.kv_dequantize_(x, codes, shares, every, bits=4)


def tensor_remap(tensor: Tensor, index: Tensor) -> None:
    """``tensor[r, c] = old[r, index[c]]`` in place, int32 ``[R, C]`` and ``[C]``."""
    words = _rows("tensor", _args.dtype("tensor", tensor, "kInt"))
    words.copy_(words.index_select(1, _columns(index, words.shape[1])))


def tensor_remap_4bit(tensor: Tensor, index: Tensor) -> None:
    """:func:`tensor_remap` on columns of 4 bits: ``tensor`` int32 ``[R, C/8]``, ``index`` int32 ``[C]``."""
    words = _rows("tensor", _args.dtype("tensor", tensor, "kInt"))
    values = unpack_nibbles(words.cpu())
    words.copy_(pack_nibbles(values.index_select(1, _columns(index, values.shape[1]).cpu())))


def _optional(name: str, value: Tensor, word: str) -> Tensor | None:
    """``None`` for an absent tensor, else a tensor of that dtype."""
    return None if _args.optional(name, value) is None else _args.dtype(name, value, word)


def _order(q_perm: Tensor, q_invperm: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both, or ``None`` where both are absent."""
    perm = _optional("q_perm", q_perm, "kShort")
    invperm = _optional("q_invperm", q_invperm, "kShort")
    if perm is None and invperm is None:
        return None
    if perm is None or invperm is None or perm.shape != invperm.shape:
        raise RuntimeError("q_perm and q_invperm must have one shape, or both be absent")
    return perm, invperm


def _exl2(
    weight: Tensor,
    order: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    scale_max: Tensor,
    groups: Tensor,
    group_map: Tensor,
    bias: Tensor | None,
) -> PackedMatrix:
    if group_map.dim() != 1 or group_map.numel() % 2:
        raise RuntimeError(f"q_group_map has shape {list(group_map.shape)}, expected [2K]")
    rows = torch.arange(group_map.numel() // 2)
    invperm = rows
    if order is not None:
        found, invperm = (order[0].cpu().long() & 0xFFFF).sort()
        if not torch.equal(found, rows):
            raise RuntimeError(f"q_perm is no order of {len(rows)} rows, as q_group_map has")
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


def _write_order(g_idx: Tensor | None, order: tuple[Tensor, Tensor] | None, K: int) -> None:
    """``q_perm`` and ``q_invperm`` as GPTQ's callers get them back."""
    if (g_idx is None) != (order is None):
        raise RuntimeError("make_q_matrix: GPTQ takes gptq_g_idx, q_perm and q_invperm together")
    if g_idx is None or order is None:
        return
    if order[0].shape != (K,) or K > MAX_ROWS:
        got = list(order[0].shape)
        raise RuntimeError(f"q_perm has shape {got}, expected [K] = [{K}] with K up to {MAX_ROWS}")
    rows = torch.argsort(g_idx.cpu(), stable=True)
    # Beyond 32767 these wrap: the bits are those of an unsigned number.
    order[0].copy_(rows.to(torch.int16))
    order[1].copy_(torch.argsort(rows).to(torch.int16))


def _check_scratch(temp_dq: Tensor, max_dq_rows: int, packed: PackedMatrix) -> None:
    scratch = _args.optional("temp_dq", temp_dq)
    needed = packed.N * min(_args.integer("max_dq_rows", max_dq_rows), packed.K)
    if scratch is not None and scratch.numel() < needed:
        raise RuntimeError(f"temp_dq has {scratch.numel()} elements, expected {needed} or more")


def _shaped(name: str, value: Tensor, rows: int, columns: int) -> None:
    if value.shape != (rows, columns):
        raise RuntimeError(f"{name} has shape {list(value.shape)}, expected {[rows, columns]}")


def _rows(name: str, value: Tensor) -> Tensor:
    """``value``, which must be a matrix."""
    if value.dim() != 2:
        raise RuntimeError(f"{name} has shape {list(value.shape)}, expected two dimensions")
    return value


def _q4(numbers: Tensor, packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole blocks of 512, as a cache of tokens of 64 numbers: x, codes, scales and the range of all its tokens."""
    x = _args.contiguous("the float16 tensor", numbers).view(-1)
    codes = _args.contiguous("the packed tensor", packed).view(-1)
    shares = _args.contiguous("scales", _args.dtype("scales", scales, "kHalf")).view(-1)
    if x.numel() != 2 * codes.numel():
        raise RuntimeError(
            f"the packed tensor has {codes.numel()} bytes, expected half of {x.numel()}"
        )
    tokens = x.numel() // 512 * 8
    if shares.numel() < 2 * tokens:
        raise RuntimeError(f"scales has {shares.numel()} elements, expected {2 * tokens}")
    return (
        x[: 64 * tokens].view(1, tokens, 1, 64),
        codes[: 32 * tokens].view(1, tokens, 1, 32),
        shares[: 2 * tokens].view(1, tokens, 1, 2),
        torch.tensor([[0, tokens]], device=x.device),
    )


def _columns(index: Tensor, count: int) -> Tensor:
    """``index``, int32 ``[count]`` of columns that exist."""
    columns = _args.dtype("index", index, "kInt")
    if columns.shape != (count,):
        raise RuntimeError(f"index has shape {list(columns.shape)}, expected [{count}]")
    if bool(((columns < 0) | (columns >= count)).any()):
        raise RuntimeError(f"index has columns outside 0 to {count - 1}")
    return columns
