"""``lora_add_``: a low-rank adapter on top of a linear layer."""

from __future__ import annotations

from torch import Tensor

from nybble.ops.matmul import matmul


def lora_add_(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
    """``y += scale * (x @ a.T) @ b.T``, in place: what an adapter adds to the layer ``y = x @ W``.

    Args:
        y: ``[..., N]`` in x's dtype, changed in place.
        x: ``[..., K]`` float32, float16 or bfloat16, the layer's input.
        a, b: ``[r, K]`` and ``[N, r]`` of any of these types, contiguous, as adapters are stored.
        scale: ``alpha / r`` for most adapters.

    Returns ``y``. Raises ``RuntimeError`` naming what does not fit.

    >>> import torch
    >>> lora_add_(torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 3), torch.ones(2, 1))
    tensor([[4., 4.]])
    """
    added = matmul(matmul(x, a), b)
    if y.shape != added.shape or y.dtype != added.dtype:
        raise RuntimeError(
            f"lora_add_: y is {y.dtype} {list(y.shape)}, expected {added.dtype} {list(added.shape)} from x and b"
        )
    return y.add_(added, alpha=scale)
