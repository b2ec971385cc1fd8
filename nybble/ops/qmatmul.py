"""``qmatmul``: the product with a packed matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble import env
from nybble.ops import _schema  # noqa: F401  (defines the ops)
from nybble.ops._native import ensure_loaded
from nybble.ops.packed import PackedMatrix

_qmatmul = torch.ops.nybble.qmatmul.default


def qmatmul(x: Tensor, packed: PackedMatrix, act_bits: int | None = None) -> Tensor:
    """``y = x @ W + bias``, ``W[perm[k], n] = (code[k, n] - zero[g, n]) * scale[g, n]``.

    Args:
        x: ``[..., K]`` float32, float16 or bfloat16, any strides.
        packed: the matrix, ``[K, N]``, on x's device.
        act_bits: 32: float activations. 16 or 8: integers with one scale per 32, where the CPU has the instructions.
            None: ``NYBBLE_ACT_BITS``, 16 unless set.

    Returns ``[..., N]`` in x's dtype. Raises ``RuntimeError`` naming what does not fit, ``SettingError`` for a bad
    variable.

    >>> from nybble.ops.packed import make_packed
    >>> codes = torch.full((32, 16), 3, dtype=torch.uint8)  # (3 - 2) * 1 in every place
    >>> ones = torch.ones(1, 16, dtype=torch.float16)
    >>> matrix = make_packed(codes, ones, torch.tensor([2]), torch.zeros(32, dtype=torch.int64))
    >>> qmatmul(torch.ones(1, 32), matrix)[0, :2]
    tensor([32., 32.])
    """
    ensure_loaded()
    if act_bits is None:
        # Read at each call, so that a program may change it: one dictionary look-up beside a whole product.
        act_bits = env.integer("NYBBLE_ACT_BITS")
    bias = packed.bias
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    if x.dim() == 0 or x.shape[-1] != packed.K:
        raise RuntimeError(
            f"qmatmul: x has shape {list(x.shape)}, expected [..., K] with K = {packed.K} from packed"
        )
    y: Tensor = _qmatmul(
        x,
        packed.weight,
        packed.scales,
        packed.zeros,
        packed.perm,
        packed.blocks,
        bias,
        packed.N,
        act_bits,
    )
    return y


@torch.library.register_fake("nybble::qmatmul")
def _(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    blocks: Tensor,
    bias: Tensor | None,
    N: int,
    act_bits: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], N))
