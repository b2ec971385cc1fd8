"""``qmatmul``: the product with a packed matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble import env
from nybble.ops._native import ensure_loaded
from nybble.ops._schema import register_fake
from nybble.ops.dequantize import dequantize
from nybble.ops.gate import gate_mul
from nybble.ops.norm import rms_norm
from nybble.ops.packed import PackedMatrix

_qmatmul = torch.ops.nybble.qmatmul.default


GATES = ("silu", "gelu", "gelu_tanh")


def rows_of_the_kernel(capability: tuple[int, int]) -> float:
    """Beyond so many rows of half numbers the matrix is dequantized and torch multiplies.

    Measured on an H200, 8192 x 28672 of 4 bits: the Hopper kernel takes 1.05 to 1.15 of the time of the product of numbers alone
    at 256 to 4096 rows; the kernel of the other GPUs 1.3 at 128 and 2.9 at 1024. Before sm_80 there is only a plain one.
    """
    if capability == (9, 0):
        return float("inf")
    return 256 if capability >= (8, 0) else 16


def qmatmul(
    x: Tensor,
    packed: PackedMatrix,
    act_bits: int | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gate: str | None = None,
    add: Tensor | None = None,
    invariant: bool | None = None,
) -> Tensor:
    """``y = f(x) @ W + bias + add``, ``W[perm[k], n] = (code[k, n] - zero[g, n]) * scale[g, n]``.

    ``f(x)`` is ``x``; with ``norm = (weight, eps)`` it is ``rms_norm(x, weight, eps)``; with ``gate`` it is
    ``act(left half of x) * (right half)``. Either gives the bits of the op of its own, without the way through Python.

    Args:
        x: ``[..., K]``, with ``gate`` ``[..., 2 K]``, float32, float16 or bfloat16, any strides.
        packed: the matrix, ``[K, N]``, on x's device.
        act_bits: 32: float activations. 16 or 8: integers with one scale per 32, where the CPU has the instructions.
            None: ``NYBBLE_ACT_BITS``, 16 unless set.
        norm: weight ``[K]`` and epsilon.
        gate: one of ``GATES``.
        add: ``[..., N]`` in x's dtype; added before the result is rounded.
        invariant: a row's result depends on no other row, nor on how many there are. Always so on the CPU; on a GPU it costs
            speed beyond 16 rows. None: ``NYBBLE_BATCH_INVARIANT``, off unless set.

    On a GPU activations stay as they are, whatever ``act_bits``; with float16 or bfloat16 x and many rows, W is rounded to
    x's dtype first. ``perm`` is not looked at there: an index outside counts as padding.

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
    if invariant is None:
        invariant = x.is_cuda and env.flag("NYBBLE_BATCH_INVARIANT")
    bias = packed.bias
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    columns = packed.K if gate is None else 2 * packed.K
    if x.dim() == 0 or x.shape[-1] != columns:
        raise RuntimeError(
            f"qmatmul: x has shape {list(x.shape)}, expected [..., {columns}] for packed with K = {packed.K}"
        )
    halves_on_gpu = x.is_cuda and x.dtype != torch.float32 and not invariant
    if halves_on_gpu and x.numel() > columns * rows_of_the_kernel(
        torch.cuda.get_device_capability(x.device)
    ):
        return of_many_rows(x, packed, bias, norm=norm, gate=gate, add=add)
    weight, eps = (None, 0.0) if norm is None else norm
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
        weight,
        eps,
        -1 if gate is None else GATES.index(gate),
        add,
        invariant,
    )
    return y


def of_many_rows(
    x: Tensor,
    packed: PackedMatrix,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, float] | None,
    gate: str | None,
    add: Tensor | None,
) -> Tensor:
    """:func:`qmatmul` by way of ``W`` in x's dtype, which is made for this product and then forgotten."""
    if norm is not None and gate is not None:
        raise RuntimeError("qmatmul: norm and gate are both given, expected one of them")
    shape = (*x.shape[:-1], packed.N)
    if add is not None and (add.shape != shape or add.dtype != x.dtype):
        raise RuntimeError(
            f"qmatmul: add is {add.dtype} {list(add.shape)}, expected {x.dtype} {list(shape)}"
        )
    if norm is not None:
        x = rms_norm(x, *norm)
    if gate is not None:
        left, right = x.chunk(2, -1)
        x = gate_mul(left, right, gate)
    y = x @ dequantize(packed, x.dtype)
    for more in (bias, add):
        if more is not None:
            y += more
    return y


@register_fake("nybble::qmatmul")
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
    norm: Tensor | None = None,
    eps: float = 0.0,
    gate: int = -1,
    add: Tensor | None = None,
    invariant: bool = False,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], N))
