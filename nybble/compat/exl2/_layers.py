"""What the attention, MLP and mixture-of-experts blocks have in common: a norm, a projection with adapters, the way out.

Between its first norm and its last sum a block works in float32; the old one rounded to float16 after each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args, _handles
from nybble.compat.exl2.matrix import QMatrix
from nybble.compat.exl2.norms import finite

Adapters = dict[int, tuple[Tensor, Tensor]]
_DENSE = torch.contiguous_format


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS or layer norm over the last dimension, to float32."""

    weight: Tensor  # float16 [D], or [H, D]: a row a head
    bias: Tensor | None  # float16 like weight, layer norm only
    rms: bool
    eps: float

    @property
    def D(self) -> int:
        """Width of a row."""
        return self.weight.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        wide = finite(x)
        if self.rms:
            return ops.rms_norm(wide, self.weight, self.eps, dtype=torch.float32)
        return ops.layer_norm(wide, self.weight, self.bias, self.eps, dtype=torch.float32)


def norm(name: str, weight: Any, bias: Any, *, rms: bool, eps: float) -> Norm | None:
    """The norm of these weights; ``None`` for an absent weight. Raises ``RuntimeError``, ``TypeError``."""
    given, shift = _args.optional(name, weight), _args.optional(f"{name}_bias", bias)
    if given is None:
        return None
    given = vector(name, given)
    if shift is not None and vector(f"{name}_bias", shift).shape != given.shape:
        raise RuntimeError(f"{name} and {name}_bias have incompatible shapes")
    return Norm(given, None if rms else shift, rms, eps)


def normed(norm: Norm | None, x: Tensor) -> Tensor:
    """The norm's result, or ``x`` in float32 where there is none."""
    return x.float() if norm is None else norm(x)


def vector(name: str, value: Any) -> Tensor:
    """A dense float16 ``[D]``. Raises ``RuntimeError``, ``TypeError``."""
    given = _args.contiguous(name, _args.dtype(name, value, "kHalf"))
    if given.dim() != 1:
        raise RuntimeError(f"{name} has shape {list(given.shape)}, expected [D]")
    return given


@dataclass(eq=False)
class Projection:
    """A quantized linear layer and the adapters that a call may ask for."""

    name: str
    matrix: QMatrix
    adapters: Adapters = field(default_factory=dict)

    def __call__(self, x: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """``x @ W + bias`` and, in this order, each adapter of ``ids`` that this layer has."""
        y = self.matrix.product(x)
        for a, b in (self.adapters[i] for i in ids if i in self.adapters):
            ops.lora_add_(y, x, a, b)
        return y


def projection(name: str, handle: Any, *, K: int | None = None, N: int | None = None) -> Projection:
    """The layer behind a matrix handle, with these sizes. Raises ``RuntimeError``, ``TypeError``."""
    matrix = _handles.get(handle, QMatrix, name=name)
    if (K is not None and matrix.K != K) or (N is not None and matrix.N != N):
        raise RuntimeError(
            f"{name} is wrong shape: [{matrix.K}, {matrix.N}], expected [{K or 'K'}, {N or 'N'}]"
        )
    return Projection(name, matrix)


def set_loras(*layers: tuple[str, Projection | None, Any, Any]) -> int:
    """Replaces the adapters of several layers, of all or of none, and returns the largest rank.

    Args:
        layers: name, the layer (``None``: it has no adapters), and two dicts from an adapter's id to float16 ``[K, r]`` and
            ``[r, N]``. The adapters are copied.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for what is no dict of tensors.
    """
    made = [_adapters(name, layer, a, b) for name, layer, a, b in layers]
    for (_, layer, _, _), adapters in zip(layers, made, strict=True):
        if layer is not None:
            layer.adapters = adapters
    return max((a.shape[0] for adapters in made for a, _ in adapters.values()), default=0)


def _adapters(name: str, layer: Projection | None, a: Any, b: Any) -> Adapters:
    for given in (a, b):
        if not isinstance(given, Mapping):
            raise TypeError(f"the adapters of {name} are {type(given).__name__}, expected dict")
    found: Adapters = {}
    for key, first in a.items():
        _args.integer(f"an adapter of {name}", key)
        if key not in b:
            raise RuntimeError(f"{name}: adapter {key} has an A but no B")
        if layer is None:
            raise RuntimeError(f"{name}: there is no such layer to adapt")
        down = _args.dtype(f"{name} A", first, "kHalf")
        up = _args.dtype(f"{name} B", b[key], "kHalf")
        K, N = layer.matrix.K, layer.matrix.N
        r = down.shape[-1] if down.dim() else 0
        if down.shape != (K, r) or up.shape != (r, N):
            raise RuntimeError(
                f"{name}: adapter {key} has shapes {list(down.shape)} and {list(up.shape)}, "
                f"expected [{K}, r] and [r, {N}]"
            )
        found[key] = down.T.clone(memory_format=_DENSE), up.T.clone(memory_format=_DENSE)
    return found


def adapter_ids(loras: Any, loras_temp: Any) -> list[int]:
    """``loras`` as a list of ids; the scratch that comes with it is not needed. Raises ``TypeError``."""
    _args.optional("loras_temp", loras_temp)
    return [_args.integer("loras", i) for i in sequence("loras", loras)]


def sequence(name: str, value: Any) -> Sequence[Any]:
    """``value``, a list or tuple. Raises ``TypeError``."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} is {type(value).__name__}, expected list")
    return value


def hidden(name: str, value: Any, *, fp32: bool) -> Tensor:
    """A block's input, dense float16, or float32 where the residual is. Raises ``RuntimeError``, ``TypeError``."""
    return _args.contiguous(name, _args.dtype(name, value, "kFloat" if fp32 else "kHalf"))


def leave_(x: Tensor, y: Tensor, post: Norm | None, *, residual: bool) -> None:
    """``x += post(y)``; without a post-norm ``x += y`` or, without a residual, ``x = y``. Rounded once."""
    if post is not None:
        x.add_(post(y))
    elif residual:
        x.add_(y)
    else:
        x.copy_(y)
