"""Filling a cache as a layer does, with keys and values that a test can recognise."""

from __future__ import annotations

from torch import Tensor

from nybble.modules.interfaces import KVStore


def append(cache: KVStore, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put ``k``, ``v`` ``[B, T, Hk, D]`` where they belong; returns what is held up to the longest sequence, by token,
    and the lengths."""
    T = k.shape[1]
    keys, values, lengths = cache.slots(layer, T)
    for b, n in enumerate(lengths.tolist()):
        keys[b, :, n - T : n], values[b, :, n - T : n] = k[b].transpose(0, 1), v[b].transpose(0, 1)
    longest = int(lengths.max())
    return keys.transpose(1, 2)[:, :longest], values.transpose(1, 2)[:, :longest], lengths
