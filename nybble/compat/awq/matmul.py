"""4-bit products of ``awq_inference_engine``: row-major weights, and the interleaved layout that came after it."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args
from nybble.compat.awq import _check
from nybble.compat.awq._packed import packed
from nybble.formats.awq import AwqGemvLinear, AwqV2Linear, zeros_width
from nybble.ops import PackedMatrix
from nybble.ops.packed import make_packed

GROUP = 128  # the only group size of the interleaved layout's kernels


def gemm_forward_cuda(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor,
    group_size: int,
    split_k_iters: int,
    /,
) -> Tensor:
    """``x @ W^T``, ``W[n, k] = (q - z) * s``, over row-major weights.

    Args:
        x: float16 ``[M, K]``.
        qweight: int32 ``[N, K/8]``, nibbles in order; N a multiple of 64.
        scales: float16 ``[N, 8 * zw]``; qzeros: int32 ``[N, zw]``; ``zw = zeros_width(K, group_size)``.
        group_size: 128 or 64.
        split_k_iters: at least 1; it does not change the result.

    Returns float16 ``[M, N]``. Raises ``ValueError`` for N or group_size, ``RuntimeError`` for anything else.
    """
    _args.integer("split_k_iters", split_k_iters)
    group_size = _args.integer("group_size", group_size)
    _row_major_types(x, qweight, scales, qzeros)
    _check.require(split_k_iters >= 1, f"split_k_iters is {split_k_iters}, expected 1 or more")
    if qweight.shape[0] % 64:
        raise ValueError("OC is not multiple of cta_N = 64")
    if group_size not in (128, 64):
        raise ValueError("Group size temporarily not supported.")
    return _row_major(x, qweight, scales, qzeros, group_size)


def gemv_forward_cuda(
    x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor, group_size: int, /
) -> Tensor:
    """As :func:`gemm_forward_cuda` for any N; group_size 128, 64 or 32, ``ValueError`` for others."""
    group_size = _args.integer("group_size", group_size)
    _row_major_types(x, qweight, scales, qzeros)
    if group_size not in (128, 64, 32):
        raise ValueError(f"group_size is {group_size}, expected 128, 64 or 32")
    return _row_major(x, qweight, scales, qzeros, group_size)


def _row_major_types(x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor) -> None:
    _check.tensors(x=x, qweight=qweight, scales=scales, qzeros=qzeros)
    _check.dtype("x", x, torch.float16)
    _check.dtype("qweight", qweight, torch.int32)
    _check.dtype("scales", scales, torch.float16)
    _check.dtype("qzeros", qzeros, torch.int32)
    _check.shape("qweight", qweight, None, None)


def _row_major(
    x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor, group_size: int
) -> Tensor:
    N, K = qweight.shape[0], 8 * qweight.shape[1]
    _check.shape("x", x, None, K)
    _check.require(
        K % group_size == 0, f"x has K = {K} inputs, expected whole groups of {group_size}"
    )
    zw = zeros_width(K, group_size)
    _check.shape("qzeros", qzeros, N, zw)
    _check.shape("scales", scales, N, 8 * zw)
    if N * K == 0:
        return x.new_zeros(x.shape[0], N)

    def make() -> PackedMatrix:
        linear = AwqGemvLinear(qweight.cpu(), qzeros.cpu(), scales.cpu(), group_size=group_size)
        return linear.to_packed().to(x.device)

    return ops.qmatmul(x, packed(make, group_size, qweight, scales, qzeros))


def gemm_forward_cuda_new(
    x: Tensor, qweight: Tensor, scales: Tensor, scaled_zeros: Tensor, /
) -> Tensor:
    """``x @ W^T``, ``W[n, k] = q * s + scaled_zero``, over the interleaved layout in groups of 128.

    Args:
        x: float16 or bfloat16 ``[..., K]``, K a multiple of 128.
        qweight: ``[N/4, K]`` of 16-bit words.
        scales, scaled_zeros: ``[K/128 or more, N]`` in x's dtype.

    Returns ``[..., N]`` in x's dtype. Raises ``RuntimeError`` naming what does not fit.
    """
    _interleaved_types("gemm_forward_cuda_new", x, qweight, scales, scaled_zeros)
    return _interleaved(x, qweight, scales, scaled_zeros)


def gemv_forward_cuda_new(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    scaled_zeros: Tensor,
    m: int,
    n: int,
    k: int,
    group_size: int,
    /,
) -> Tensor:
    """As :func:`gemm_forward_cuda_new` for 1 to 7 rows; m, n and k must be those of the tensors, group_size 128."""
    m, n, k = _args.integer("m", m), _args.integer("n", n), _args.integer("k", k)
    group_size = _args.integer("group_size", group_size)
    _interleaved_types("gemv_forward_cuda_new", x, qweight, scales, scaled_zeros)
    _check.require(group_size == GROUP, "Unsupported group size for gemv kernel.\n")
    _check.require(1 <= m <= 7, "Unsupported batch size for gemv kernel.\n")
    found = _check.rows("x", x), 4 * qweight.shape[0], x.shape[-1]
    _check.require(
        found == (m, n, k),
        f"m, n, k are {m}, {n}, {k}, but the tensors have {', '.join(map(str, found))}",
    )
    return _interleaved(x, qweight, scales, scaled_zeros)


def _interleaved_types(
    function: str, x: Tensor, qweight: Tensor, scales: Tensor, scaled_zeros: Tensor
) -> None:
    _check.tensors(x=x, qweight=qweight, scales=scales, scaled_zeros=scaled_zeros)
    _check.one_of(function, x, _check.HALVES)
    _check.dtype("scales", scales, x.dtype)
    _check.dtype("scaled_zeros", scaled_zeros, x.dtype)
    _check.require(
        qweight.element_size() == 2, f"qweight is {qweight.dtype}, expected 16-bit words"
    )
    _check.shape("qweight", qweight, None, None)


def _interleaved(x: Tensor, qweight: Tensor, scales: Tensor, scaled_zeros: Tensor) -> Tensor:
    N, K = 4 * qweight.shape[0], qweight.shape[1]
    _check.require(
        x.dim() >= 1 and x.shape[-1] == K,
        f"x has shape {list(x.shape)}, expected [..., K] with K = {K} from qweight",
    )
    _check.require(K % GROUP == 0, f"x has K = {K} inputs, expected whole groups of {GROUP}")
    _check.shape("scales", scales, None, N)
    _check.shape("scaled_zeros", scaled_zeros, *scales.shape)
    _check.require(
        scales.shape[0] >= K // GROUP,
        f"scales has {scales.shape[0]} rows, expected {K // GROUP} or more",
    )
    if N * K == 0:
        return x.new_zeros(*x.shape[:-1], N)
    matrix, residue = packed(
        lambda: _pack_interleaved(qweight, scales, scaled_zeros),
        "interleaved",
        qweight,
        scales,
        scaled_zeros,
    )
    rows = x.reshape(-1, K).float()
    y = ops.qmatmul(rows, matrix)
    y.addmm_(rows.unflatten(-1, (-1, GROUP)).sum(-1), residue)
    return y.to(x.dtype).view(*x.shape[:-1], N)


def _pack_interleaved(
    qweight: Tensor, scales: Tensor, scaled_zeros: Tensor
) -> tuple[PackedMatrix, Tensor]:
    """``W = (q - z) * s + residue[g, n]`` with whole z: the residue is what rounding took from ``z * s`` when
    scaled_zeros was made. As a fraction of s it would not fit a float32 zero point to the last bit."""
    words = qweight.cpu().contiguous().view(torch.int16)
    linear = AwqV2Linear(words, scales.cpu(), scaled_zeros.cpu(), group_size=GROUP)
    scale, zeros = linear.scale_rows(), linear.zero_rows().round()
    G = linear.groups
    matrix = make_packed(
        linear.codes(),
        scale.half(),
        torch.full((G,), 4),
        torch.arange(linear.K) // GROUP,
        zeros=zeros,
    )
    residue = linear.scaled_zeros[:G].float() + zeros * scale.float()
    return matrix.to(qweight.device), residue.to(qweight.device)
