"""Cases of ``paged_attention``: every storage, page sizes, lengths, masks; what no sequence holds is NaN."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.cases.base import DTYPES, F32, UNIT, Case
from tests.cases.kv import dequantize, quantize


def plain_paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: list[int],
    slopes: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """The docstring's formula, one query and one head at a time, in float64."""
    B, T, H, D = q.shape
    page, Hk = keys.shape[1:3]
    out = torch.zeros(B, T, H, D, dtype=torch.float64)
    for b, length in enumerate(lengths):
        at = torch.arange(length)
        where = table[b, at // page].long(), at % page
        k, v = keys[where].double(), values[where].double()
        for t in range(T):
            p = length - T + t
            seen = (at <= p) & (at > p - window) if window else at <= p
            for h in range(H if bool(seen.any()) else 0):
                g = h // (H // Hk)
                score = k[seen, g] @ q[b, t, h].double() * scale
                if softcap:
                    score = softcap * (score / softcap).tanh()
                if slopes is not None:
                    score = score + float(slopes[h]) * (at[seen] - p)
                out[b, t, h] = score.softmax(0) @ v[seen, g]
    return out


def stored(x: Tensor, kind: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the cache holds of ``x [P, page, Hk, D]``, its scales, and the numbers that stand for."""
    if kind == "plain":
        return x, None, x.double()
    half = x.half()
    if kind == "fp8":
        codes = ((half.view(torch.int16).to(torch.int32) & 0xFFFF) >> 8).to(torch.uint8)
        return codes, None, (codes.to(torch.int16) << 8).view(torch.float16).double()
    bits = int(kind[1:])
    q, scales = quantize(half.reshape(-1, 64).numpy(), bits)
    back = torch.from_numpy(dequantize(q, scales, bits)).view(x.shape).double()
    packed = torch.from_numpy(q if bits == 8 else q[:, ::2] | q[:, 1::2] << 4)
    *tokens, D = x.shape
    return packed.view(*tokens, D * bits // 8), torch.from_numpy(scales).view(*tokens, -1), back


def spread(lengths: list[int], page: int) -> tuple[Tensor, int]:
    """A block table whose pages are in no order, with places past each length that must not be looked at."""
    counts = [-(-length // page) for length in lengths]
    order = (torch.randperm(sum(counts)) + 1).tolist()  # page 0 belongs to nobody
    table = torch.full((len(lengths), max(counts, default=0) + 1), -7, dtype=torch.int32)
    for b, count in enumerate(counts):
        table[b, :count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)
    return table, sum(counts) + 1


def paged_attention_cases() -> Iterator[Case]:
    everything = ("plain", "fp8", "q8", "q4", "q8/q4")
    shapes = [
        # B, T, H, Hk, D, page, lengths, window, softcap, ALiBi, storages
        (1, 1, 8, 2, 64, 16, [37], 0, 0.0, False, everything),
        (3, 1, 32, 8, 128, 256, [300, 1, 0], 0, 0.0, False, everything),
        (2, 3, 4, 4, 128, 16, [70, 2], 0, 0.0, True, everything),
        (2, 1, 6, 2, 96, 7, [20, 133], 0, 0.0, False, everything),  # groups across heads
        (1, 4, 12, 2, 128, 32, [520], 50, 0.0, False, everything),  # 24 rows, three blocks of 8
        (1, 1, 2, 1, 256, 64, [200], 0, 5.0, False, everything),
        (2, 1, 4, 2, 80, 16, [90, 33], 0, 0.0, True, ("plain", "fp8")),
        (1, 2, 5, 1, 40, 5, [33], 9, 0.0, False, ("plain", "fp8")),
        (1, 1, 3, 3, 36, 1, [19], 0, 0.0, False, ("plain",)),
        (40, 1, 4, 1, 64, 16, [0, 1, 15, 16, 17, 64, 100, 31] * 5, 0, 0.0, False, ("plain", "q4")),
        (2, 1, 8, 1, 128, 128, [2000, 700], 128, 20.0, True, ("plain", "q8/q4")),
        # One sequence alone, whose blocks add up: of several ranges, of fewer tokens than warps, with what bends scores.
        (1, 1, 32, 8, 128, 64, [2300], 0, 0.0, False, everything),
        (1, 1, 32, 8, 128, 256, [3], 0, 0.0, False, everything),
        (1, 1, 32, 8, 128, 256, [0], 0, 0.0, False, ("plain", "q4")),
        (1, 2, 32, 8, 128, 32, [1100], 600, 0.0, False, ("plain", "q8", "q4")),
        (1, 1, 16, 8, 128, 16, [700], 300, 30.0, True, ("plain", "q8", "q4")),
        # Many, of heads that are read together or apart, bent and not.
        (20, 1, 8, 8, 128, 32, [1, 33, 70, 0, 128] * 4, 0, 0.0, False, ("q8", "q4", "q8/q4")),
        (20, 1, 8, 8, 128, 32, [1, 33, 70, 0, 128] * 4, 40, 9.0, True, ("q8", "q4", "plain")),
        # So many that parts are few, with two queries; more than lengths are guessed of.
        (40, 2, 8, 2, 128, 16, [0, 2, 40, 17, 64] * 8, 0, 0.0, False, ("plain", "q4")),
        (132, 1, 2, 1, 64, 16, [0, 1, 33] * 44, 0, 0.0, False, ("plain", "q8", "q4")),
        (0, 1, 2, 1, 64, 16, [], 0, 0.0, False, ("plain",)),
    ]
    for dtype in DTYPES:
        for B, T, H, Hk, D, page, lengths, window, softcap, alibi, storages in shapes:
            for storage in storages:
                if dtype == torch.float32 and storage != "plain":
                    continue
                table, P = spread(lengths, page)
                wide = torch.randn(B, T, H + 3, D).to(dtype)
                q = wide[:, :, 2 : H + 2]  # a view, as the fused projection gives it
                kinds = storage.split("/") * 2
                made = [stored(torch.randn(P, page, Hk, D).to(dtype), kind) for kind in kinds[:2]]
                for what, kind in zip(made, kinds, strict=False):
                    # What no sequence holds must not be read into a result.
                    hole = torch.ones(P, page, dtype=torch.bool)
                    for b, length in enumerate(lengths):
                        at = torch.arange(length)
                        hole[table[b, at // page].long(), at % page] = False
                    nothing = what[0] if kind in ("plain", "fp8") else what[1]
                    assert nothing is not None
                    nothing[hole] = 0xFF if kind == "fp8" else torch.nan
                slopes = torch.rand(H) / 8 if alibi else None
                scale = D**-0.5
                expected = plain_paged_attention(
                    q, made[0][2], made[1][2], table, lengths, slopes, scale, window, softcap
                )
                yield Case(
                    "paged_attention",
                    f"{dtype}-b{B}t{T}h{H}k{Hk}d{D}p{page}-{storage}-n{sum(lengths)}w{window}",
                    (
                        q,
                        made[0][0],
                        made[1][0],
                        made[0][1],
                        made[1][1],
                        table,
                        torch.tensor(lengths, dtype=torch.int64),
                        slopes,
                        scale,
                        window,
                        softcap,
                    ),
                    expected,
                    tolerance(dtype, storage, D, max(lengths, default=0), expected),
                )


def tolerance(dtype: torch.dtype, storage: str, D: int, S: int, expected: Tensor) -> Tensor:
    """Scores carry D roundings of float32, turned into a relative error of the weights by the softmax."""
    size = 4.0 * D**0.5 * (D + 8) * F32 + (S + 16) * F32
    if dtype != torch.float32:
        # On a GPU the weights are rounded to 16 bits for the second product. Bytes meet halves, so q is rounded there too,
        # rotated or not; a score of 6 then moves by some 2^-11 of it.
        size += UNIT[dtype] if storage == "plain" else 8 * UNIT[torch.float16]
    return size * 5.0 + 4 * UNIT[dtype] * expected.abs() + 1e-6
