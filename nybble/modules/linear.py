"""Linear layers over quantized or dense weights; layers that read the same input run as one product
where they can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nybble import ops
from nybble.formats.base import LinearWeights
from nybble.formats.dense import DenseLinear
from nybble.modules.before import Before, Gate, RmsNorm
from nybble.ops.packed import PackedMatrix
from nybble.ops.tiles import COLUMNS


@dataclass(frozen=True)
class Placement:
    """Where weights go and what they become there."""

    device: torch.device
    dtype: torch.dtype  # of activations, and of a packed matrix's bias
    dense_dtype: torch.dtype | None = None  # of dense weights; None: as stored
    act_bits: int | None = None  # of activations in quantized products; None: the environment's

    def dense(self, tensor: Tensor) -> Tensor:
        """``tensor`` as a dense weight of this model."""
        return tensor.to(self.device, self.dense_dtype or tensor.dtype).contiguous()


@dataclass(frozen=True)
class PackedProduct:
    """``y = x W + bias`` over a packed matrix."""

    matrix: PackedMatrix
    act_bits: int | None

    @property
    def N(self) -> int:
        return self.matrix.N

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def __call__(
        self, x: Tensor, before: Before | None = None, add: Tensor | None = None
    ) -> Tensor:
        norm = (before.weight, before.eps) if isinstance(before, RmsNorm) else None
        gate = before.activation if isinstance(before, Gate) else None
        return ops.qmatmul(x, self.matrix, self.act_bits, norm=norm, gate=gate, add=add)


@dataclass(frozen=True)
class DenseProduct:
    """``y = x weight^T + bias``."""

    weight: Tensor  # [N, K]
    bias: Tensor | None  # [N]

    @property
    def N(self) -> int:
        return self.weight.shape[0]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(
        self, x: Tensor, before: Before | None = None, add: Tensor | None = None
    ) -> Tensor:
        y = ops.matmul(x if before is None else before(x), self.weight, self.bias)
        return y if add is None else y.add_(add)


Product = PackedProduct | DenseProduct


class Linear:
    """One or several linear layers of the same input ``x`` ``[..., K]``.

    >>> layer = Linear([DenseProduct(torch.eye(4), None)], [(3,)])
    >>> layer(torch.arange(4.0))  # the fourth column is padding
    tensor([0., 1., 2.])
    """

    def __init__(self, products: Sequence[Product], widths: Sequence[Sequence[int]]) -> None:
        """``widths[i]`` are the layers side by side in product ``i``; what a product computes
        beyond them is padding."""
        self.products = tuple(products)
        self.widths = tuple(tuple(w) for w in widths)
        self.is_one_product = len(self.products) == 1
        self._padded = [sum(w) != p.N for p, w in zip(self.products, self.widths, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes that one call reads."""
        return sum(p.nbytes for p in self.products)

    def _run(self, i: int, x: Tensor, before: Before | None, add: Tensor | None = None) -> Tensor:
        if not self._padded[i]:
            return self.products[i](x, before, add)
        y = self.products[i](x, before)[..., : sum(self.widths[i])]
        return y if add is None else y + add

    def __call__(
        self, x: Tensor, before: Before | None = None, add: Tensor | None = None
    ) -> Tensor:
        """``before(x) W + bias + add``: ``[..., sum of all widths]``, the layers' outputs side by side."""
        if self.is_one_product:
            return self._run(0, x, before, add)
        y = torch.cat(self.parts(x, before), dim=-1)
        return y if add is None else y.add_(add)

    def parts(self, x: Tensor, before: Before | None = None) -> tuple[Tensor, ...]:
        """Each layer's output ``[..., N]``; views of one tensor where one product made them."""
        if before is not None and not self.is_one_product:  # once, not in each product
            x, before = before(x), None
        out: list[Tensor] = []
        for i, widths in enumerate(self.widths):
            y = self._run(i, x, before)
            out.extend([y] if len(widths) == 1 else torch.split(y, list(widths), dim=-1))
        return tuple(out)


def build_linear(
    weights: Sequence[LinearWeights], widths: Sequence[int], place: Placement
) -> Linear:
    """Layers of one input, neighbours joined into one product where that is exact.

    Dense weights join where their dtype is one; packed ones where rows, widths, groups and
    permutation are the same
    and the left one fills its last column block.

    Args:
        weights: one a layer, all with the same ``K``.
        widths: true outputs of each layer; a format may pad its own ``N`` beyond that.
        place: device and dtypes.
    """
    products: list[Product] = []
    joined: list[list[int]] = []
    for w, width in zip(weights, widths, strict=True):
        product = _product(w, place)
        last = products[-1] if products else None
        both = _join(last, product) if last is not None and sum(joined[-1]) == last.N else None
        if both is None:
            products.append(product)
            joined.append([width])
        else:
            products[-1] = both
            joined[-1].append(width)
    return Linear(products, joined)


def _product(w: LinearWeights, place: Placement) -> Product:
    if isinstance(w, DenseLinear):
        bias = None if w.bias is None else place.dense(w.bias.to(w.weight.dtype))
        return DenseProduct(place.dense(w.weight), bias)
    matrix = w.to_packed().to(place.device)
    if matrix.bias is not None:
        matrix = replace(matrix, bias=matrix.bias.to(place.dtype))
    return PackedProduct(matrix, place.act_bits)


def _join(a: Product, b: Product) -> Product | None:
    """Both as one product with the outputs of ``a`` first, or None where that cannot be."""
    if isinstance(a, DenseProduct) and isinstance(b, DenseProduct):
        if a.weight.dtype != b.weight.dtype or (a.bias is None) != (b.bias is None):
            return None
        return DenseProduct(torch.cat([a.weight, b.weight]), _cat(a.bias, b.bias))
    if (
        isinstance(a, PackedProduct)
        and isinstance(b, PackedProduct)
        and _same_rows(a.matrix, b.matrix)
    ):
        p, q = a.matrix, b.matrix
        matrix = PackedMatrix(
            K=p.K,
            N=p.N + q.N,
            weight=torch.cat([p.weight, q.weight]),
            scales=torch.cat([p.scales, q.scales]),
            blocks=p.blocks,
            zeros=_cat(p.zeros, q.zeros),
            perm=p.perm,
            bias=_cat(p.bias, q.bias),
        )
        return PackedProduct(matrix, a.act_bits)
    return None


def _same_rows(p: PackedMatrix, q: PackedMatrix) -> bool:
    """Whether the column blocks of ``q`` can follow those of ``p``."""
    return (
        p.K == q.K
        and p.N % COLUMNS == 0
        and p.scales.shape[1] == q.scales.shape[1]
        and torch.equal(p.blocks, q.blocks)
        and _same(p.perm, q.perm)
        and (p.zeros is None) == (q.zeros is None)
        and (p.bias is None) == (q.bias is None)
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def _cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])
