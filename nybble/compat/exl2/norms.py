"""``rms_norm``, ``layer_norm``, ``head_norm``, their forms in place, and ``softcap_``.

Half inputs are held to the finite range first, as the old kernels did: an infinity becomes 65504 of its sign, NaN 65504.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args

_HALF_MAX = 65504.0


def rms_norm(x: Any, w: Any, y: Any, epsilon: Any) -> None:
    """``y = x w / sqrt(mean(x^2) + epsilon)``: x, y ``[rows, dim]`` half or float, w ``[dim]`` half. y may be x."""
    x, y = _wide("x", x), _wide("y", y)
    w = _args.contiguous("w", _args.dtype("w", w, "kHalf"))
    _same_rows(x, w, y)
    y.copy_(ops.rms_norm(finite(x), w, _args.number("epsilon", epsilon), dtype=y.dtype))


def rms_norm_(x: Any, w: Any, epsilon: Any) -> None:
    """:func:`rms_norm` with y = x."""
    rms_norm(x, w, x, epsilon)


def layer_norm(x: Any, w: Any, b: Any, y: Any, epsilon: Any) -> None:
    """``y = (x - mean) w / sqrt(var + epsilon) + b``, all half; b may be absent, y may be x."""
    x, w, b, y = _halves(x, w, b, y)
    _same_rows(x, w, y)
    if b is not None:
        _match("b and w", b.shape == w.shape)
    y.copy_(ops.layer_norm(finite(x), w, b, _args.number("epsilon", epsilon)))


def layer_norm_(x: Any, w: Any, b: Any, epsilon: Any) -> None:
    """:func:`layer_norm` with y = x."""
    layer_norm(x, w, b, x, epsilon)


def head_norm(x: Any, w: Any, b: Any, y: Any, epsilon: Any, rms: Any) -> None:
    """Either norm of each head with weights of its own: x, y ``[..., heads, head_dim]``, w, b ``[heads, head_dim]``."""
    x, w, b, y = _halves(x, w, b, y)
    _match("x and w", w.dim() == 2 and x.shape[-2:] == w.shape)
    _match("x and y", x.shape == y.shape)
    if b is not None:
        _match("b and w", b.shape == w.shape)
    eps = _args.number("epsilon", epsilon)
    if _args.boolean("rms", rms):
        y.copy_(ops.rms_norm(finite(x), w, eps))
        if b is not None:
            y += b
    else:
        y.copy_(ops.layer_norm(finite(x), w, b, eps))


def head_norm_(x: Any, w: Any, b: Any, epsilon: Any, rms: Any) -> None:
    """:func:`head_norm` with y = x."""
    head_norm(x, w, b, x, epsilon, rms)


def softcap_(x: Any, scale: Any) -> None:
    """``x = scale tanh(x / scale)`` in place, x half or float of any shape."""
    if _args.tensor("x", x).dtype not in (torch.float32, torch.float16) or x.is_meta:
        raise RuntimeError("softcap_ wrong dtype")
    ops.softcap_(_args.contiguous("x", x).view(-1), _args.number("scale", scale))


def _wide(name: str, value: Any) -> Tensor:
    """A contiguous tensor, half or float32."""
    wide = _args.tensor(name, value).dtype == torch.float32
    return _args.contiguous(name, _args.dtype(name, value, "kFloat" if wide else "kHalf"))


def _halves(x: Any, w: Any, b: Any, y: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """All four contiguous and half, ``b`` unless it is absent."""
    x, w, y = (
        _args.contiguous(name, _args.dtype(name, value, "kHalf"))
        for name, value in (("x", x), ("w", w), ("y", y))
    )
    if _args.optional("b", b) is None:
        return x, w, None, y
    return x, w, _args.contiguous("b", _args.dtype("b", b, "kHalf")), y


def _same_rows(x: Tensor, w: Tensor, y: Tensor) -> None:
    _match("x and w", x.dim() == 2 and w.dim() == 1 and x.shape[1] == w.shape[0])
    _match("x and y", x.shape == y.shape)


def _match(names: str, good: bool) -> None:
    if not good:
        raise RuntimeError(f"{names} have incompatible shapes")


def finite(x: Tensor) -> Tensor:
    """``x``, half held to the range of finite numbers; float32 as it is."""
    if x.dtype == torch.float32:
        return x
    return x.nan_to_num(nan=_HALF_MAX, posinf=_HALF_MAX, neginf=-_HALF_MAX)
