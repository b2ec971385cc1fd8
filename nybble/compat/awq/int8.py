"""8-bit products of ``awq_inference_engine``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args
from nybble.compat.awq import _check


def w8a8_gemm_forward_cuda(
    x: Tensor, weight: Tensor, wscales: Tensor, ascales: Tensor, out: Tensor, /
) -> None:
    """``out[m, n] = (sum_k x[m, k] * weight[n, k]) * (wscales[n] * ascales[m])``; the sum is exact.

    Args:
        x: int8 ``[M, K]``.
        weight: int8 ``[N, K]``.
        wscales: float16 ``[N]``; ascales: float16 ``[M]``.
        out: float16 ``[..., N]`` of M rows; written.

    Raises ``RuntimeError`` naming what does not fit.
    """
    _multiply(x, weight, wscales, ascales, out, None)


def w8a8_gemm_fuse_bias_forward_cuda(
    x: Tensor, weight: Tensor, wscales: Tensor, ascales: Tensor, out: Tensor, bias: Tensor, /
) -> None:
    """As :func:`w8a8_gemm_forward_cuda`, plus ``bias[n]``, float16 ``[N]``, before the result is rounded."""
    _multiply(x, weight, wscales, ascales, out, _args.tensor("bias", bias))


def _multiply(
    x: Tensor,
    weight: Tensor,
    wscales: Tensor,
    ascales: Tensor,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    given = {"x": x, "weight": weight, "wscales": wscales, "ascales": ascales, "out": out}
    halves = {"wscales": wscales, "ascales": ascales, "out": out}
    if bias is not None:
        given["bias"] = halves["bias"] = bias
    _check.tensors(**given)
    _check.dtype("x", x, torch.int8)
    _check.dtype("weight", weight, torch.int8)
    for name, value in halves.items():
        _check.dtype(name, value, torch.float16)
    _check.shape("x", x, None, None)
    M, K = x.shape
    _check.shape("weight", weight, None, K)
    N = weight.shape[0]
    _check.elements("wscales", wscales, N)
    _check.elements("ascales", ascales, M)
    if bias is not None:
        _check.elements("bias", bias, N)
    _check.require(
        out.dim() >= 1 and out.shape[-1] == N and out.numel() == M * N,
        f"out has shape {list(out.shape)}, expected [..., {N}] of {M} rows",
    )
    y = ops.int8_matmul(
        x,
        ascales.reshape(M).float(),
        weight.contiguous(),
        wscales.reshape(N).float(),
        None if bias is None else bias.reshape(N).float(),
        dtype=torch.float16,
    )
    out.copy_(y.view(out.shape))
