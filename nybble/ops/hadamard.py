"""Hadamard matrices, ``H @ H.T == n * I`` with entries of 1 and -1, from the squares modulo a prime."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def paley1(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Paley's first construction, ``[n, n]`` for a prime ``p = n - 1`` with ``p % 4 == 3``.

    Row 0 is all 1. ``H[i + 1, 0] = -1``; ``H[i + 1, j + 1]`` is 1 where ``(i - j) % p`` is a square, 0 included, else -1.

    Raises ``ValueError`` for an ``n`` without such a prime.

    >>> paley1(4)
    tensor([[ 1.,  1.,  1.,  1.],
            [-1.,  1., -1.,  1.],
            [-1.,  1.,  1., -1.],
            [-1., -1.,  1.,  1.]])
    """
    p = n - 1
    if not _is_prime(p) or p % 4 != 3:
        raise ValueError(
            f"paley1: n is {n}, expected a prime n - 1 that leaves 3 when divided by 4"
        )
    h = torch.ones(n, n, dtype=dtype)
    h[1:, 0] = -1
    h[1:, 1:] = _jacobsthal(p, 1, dtype)
    return h


def paley2(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Paley's second construction, ``[n, n]`` for a prime ``p = n / 2 - 1`` with ``p % 4 == 1``.

    Blocks of 2 x 2: ``[[1, -1], [-1, -1]]`` on the diagonal; elsewhere ``[[1, 1], [1, -1]]``, negated where both block
    indices are from 1 and their difference is no square modulo ``p``.

    Raises ``ValueError`` for an ``n`` without such a prime.

    >>> h = paley2(12)
    >>> torch.equal(h @ h.T, 12 * torch.eye(12))
    True
    """
    p = n // 2 - 1
    if n % 2 or not _is_prime(p) or p % 4 != 1:
        raise ValueError(
            f"paley2: n is {n}, expected an even number whose half minus 1 is a prime that leaves 1 when divided by 4"
        )
    signs = torch.ones(n // 2, n // 2, dtype=dtype)
    signs[1:, 1:] = _jacobsthal(p, 0, dtype)
    signs[0, 0] = 0
    other = torch.tensor([[1, 1], [1, -1]], dtype=dtype)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=dtype)
    return torch.kron(signs, other) + torch.kron(torch.eye(n // 2, dtype=dtype), diagonal)


def _jacobsthal(p: int, diagonal: int, dtype: torch.dtype) -> Tensor:
    """``Q[i, j]``: 1 where ``(i - j) % p`` is the square of a number other than 0, -1 where not, ``diagonal`` where i = j."""
    character = torch.full((p,), -1, dtype=dtype)
    character[torch.arange(1, p).square() % p] = 1
    character[0] = diagonal
    # Row i is the reversed character from place p - i on: windows of two copies of it, last to first.
    reversed_ = character[-torch.arange(p) % p]
    return torch.cat([reversed_, reversed_]).unfold(0, p, 1)[1:].flip(0)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
