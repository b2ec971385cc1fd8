"""Cases of ``decode_attention``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.cases.base import DTYPES, F32, UNIT, Case


def chunked(keys: Tensor) -> Tensor:
    """Keys ``[B, Hk, L, D]`` as the cache holds them, ``[B, Hk, D/x, L, x]``."""
    x = 16 // keys.element_size()
    return keys.unflatten(-1, (-1, x)).transpose(2, 3).contiguous()


def plain_decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, lengths: list[int], slopes: Tensor | None, scale: float
) -> Tensor:
    """The docstring's formula, one head and one token at a time, in float64."""
    B, H, _ = q.shape
    Hk, L = keys.shape[1:3]
    out = torch.zeros(B, H, values.shape[3], dtype=torch.float64)
    for b, length in enumerate(lengths):
        tokens = range(max(0, length - L), length)
        for h in range(H if length and L else 0):
            g, slope = h // (H // Hk), 0.0 if slopes is None else float(slopes[h])
            score = torch.tensor(
                [
                    float(keys[b, g, t % L].double() @ q[b, h].double()) * scale
                    + slope * (t - length + 1)
                    for t in tokens
                ],
                dtype=torch.float64,
            )
            out[b, h] = score.softmax(0) @ values[b, g, [t % L for t in tokens]].double()
    return out


def decode_attention_cases() -> Iterator[Case]:
    shapes = [
        # B, H, Hk, L, D, lengths, ALiBi
        (1, 1, 1, 1, 8, [1], False),
        (2, 8, 2, 37, 64, [37, 5], False),
        (3, 6, 6, 20, 80, [3, 20, 0], True),
        (1, 7, 1, 70, 32, [70], False),  # two groups of heads
        (2, 5, 1, 12, 128, [29, 12], True),  # the ring has come round
        (1, 4, 2, 130, 256, [131], True),
        (1, 2, 1, 300, 16, [299], False),
        (0, 2, 1, 4, 16, [], False),
        (2, 2, 1, 0, 16, [3, 0], False),
        (2, 9, 1, 700, 64, [900, 513], True),  # several parts of a ring, nine heads of one KV head
    ]
    for dtype in DTYPES:
        for B, H, Hk, L, D, lengths, alibi in shapes:
            keys, values = (torch.randn(B, Hk, L, D).to(dtype) for _ in range(2))
            for b, length in enumerate(
                lengths
            ):  # a slot without a token must not be read into a result
                keys[b, :, length:], values[b, :, length:] = torch.nan, torch.nan
            wide = torch.randn(B, H + 3, D).to(dtype)
            q, scale = wide[:, 2 : H + 2], D**-0.5  # a view, as the fused projection gives it
            slopes = torch.rand(H) if alibi else None
            both = torch.cat([values, values.abs()], -1)
            expected, weighted = plain_decode_attention(
                q, keys, both, lengths, slopes, scale
            ).chunk(2, -1)
            # As for attention: scores carry D roundings, the softmax turns them into a relative error of the weights.
            size = 4.0 * D**0.5 * (D + 8) * F32 + (L + 16) * F32
            bound = size * 5.0 + 4 * UNIT[dtype] * expected.abs() + 1e-6
            if dtype != torch.float32:  # tensor cores take the weights in the dtype of the values
                bound = bound + UNIT[dtype] * weighted
            args = (
                q,
                chunked(keys),
                values,
                torch.tensor(lengths, dtype=torch.int64),
                slopes,
                scale,
            )
            yield Case(
                "decode_attention",
                f"{dtype}-b{B}h{H}k{Hk}l{L}d{D}-{lengths}",
                args,
                expected,
                bound,
            )
