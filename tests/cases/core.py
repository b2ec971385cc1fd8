"""Cases of the ops that a decoder needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.cases.base import DTYPES, F32, UNIT, Case, rounding


def cached_attention_cases() -> Iterator[Case]:
    """One step after another: what was held before, ``T`` new tokens, lengths that differ."""
    shapes = [  # B, T, H, Hk, D, R, S, window, lengths after
        (1, 1, 2, 1, 8, 8, 4, 0, [1]),
        (3, 2, 6, 2, 16, 8, 9, 0, [9, 2, 5]),
        (2, 3, 4, 4, 64, 64, 70, 5, [70, 33]),
        (1, 1, 8, 1, 32, 32, 600, 0, [555]),
        (2, 70, 4, 2, 128, 128, 150, 0, [150, 80]),
        (1, 2, 3, 1, 10, 6, 7, 0, [6]),
        (0, 1, 2, 1, 8, 8, 3, 0, []),
        (2, 0, 2, 1, 8, 8, 3, 0, [0, 3]),
    ]
    for dtype in DTYPES:
        for B, T, H, Hk, D, R, S, window, lengths in shapes:
            for neox in (True, False):
                qkv = torch.randn(B, T, (H + 2 * Hk) * D).to(dtype)
                keys, values = torch.randn(2, B, Hk, S + 1, D).to(dtype)[:, :, :, :S]
                after = torch.tensor(lengths, dtype=torch.int64)
                angle = torch.arange(700)[:, None] * torch.logspace(0, -3, R // 2)
                cos, sin = angle.cos(), angle.sin()
                positions = after[:, None] - T + torch.arange(T)
                heads = qkv.view(B, T, H + 2 * Hk, D)
                turned = turn(heads.double(), cos, sin, positions, neox, R)
                turned[:, :, H + Hk :] = heads[:, :, H + Hk :].double()
                stored = [keys.double(), values.double()]
                for b in range(B):
                    new = slice(lengths[b] - T, lengths[b])
                    stored[0][b, :, new] = turned[b, :, H : H + Hk].transpose(0, 1)
                    stored[1][b, :, new] = turned[b, :, H + Hk :].transpose(0, 1)
                k, v = (x.transpose(1, 2) for x in stored)
                args = (turned[:, :, :H], k, v.to(dtype), after, D**-0.5, True, window)
                o, bound = expected_attention(args)
                bound += 20.0 * D**0.5 * 2 * UNIT[dtype]  # q and k are rounded before they meet
                turned_bound = (
                    rounding(turned, dtype) + 8 * F32 * turned.abs().amax()
                    if turned.numel()
                    else 0.0
                )
                bounds = (
                    turned_bound.flatten(2) if torch.is_tensor(turned_bound) else 0.0,
                    rounding(stored[0], dtype) + 32 * F32,
                    0.0,
                    bound.flatten(2),
                )
                yield Case(
                    "cached_attention_",
                    f"{dtype}-b{B}t{T}h{H}k{Hk}d{D}r{R}s{S}-w{window}-{'neox' if neox else 'gptj'}",
                    (qkv, cos, sin, positions, neox, keys, values, after, D**-0.5, window),
                    (turned.flatten(2), *stored, o.flatten(2)),
                    bounds,
                    written=(0, 5, 6),
                )


def matmul_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for w_dtype in DTYPES:
            for M, N, K in (
                (1, 33, 70),
                (0, 8, 8),
                (5, 1, 1),
                (130, 65, 257),
                (70, 66, 104),
                (1, 35, 2056),
                (2, 3, 520),
                (4, 130, 72),
                (7, 5, 1032),
                (12, 40, 1048),
                (33, 20, 264),
                (3, 0, 4),
                (2, 5, 0),
            ):
                x, w = torch.randn(M, K).to(dtype), torch.randn(N, K).to(w_dtype)
                bias = torch.randn(N).to(w_dtype) if M % 2 else None
                product = x.double() @ w.double().T
                expected = product if bias is None else product + bias.double()
                bound = (K + 8) * F32 * (x.double().abs() @ w.double().abs().T + expected.abs())
                yield Case(
                    "matmul",
                    f"{dtype}-{w_dtype}-{M}x{N}x{K}",
                    (x, w, bias),
                    expected,
                    bound + rounding(expected, dtype),
                )
    x, w = torch.randn(4, 96)[:, 16:80], torch.randn(40, 64)
    expected = x.double() @ w.double().T
    yield Case(
        "matmul",
        "strided",
        (x, w, None),
        expected,
        72 * F32 * (x.double().abs() @ w.double().abs().T),
    )


def norm_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in ((1, 8), (3, 5, 33), (0, 16), (2, 4096), (7, 1)):
            x = torch.randn(shape).to(dtype) * 3 + 1
            w, b = torch.randn(shape[-1]), torch.randn(shape[-1])
            xd = x.double()
            rms = xd / (xd.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w.double()
            slack = 32 * F32
            yield Case(
                "rms_norm",
                f"{dtype}-{shape}",
                (x, w, 1e-5),
                rms,
                slack * rms.abs() + rounding(rms, dtype),
            )
            mean = xd.mean(-1, keepdim=True)
            deviation = ((xd - mean).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
            ln = (xd - mean) / deviation * w.double() + b.double()
            # The mean is rounded once to float32; its error is divided by the deviation.
            bound = slack * (
                (xd.abs() + mean.abs()) / deviation * w.double().abs() + b.double().abs()
            )
            yield Case(
                "layer_norm", f"{dtype}-{shape}", (x, w, b, 1e-5), ln, bound + rounding(ln, dtype)
            )
    x, w = torch.randn(6, 64)[:, 8:40], torch.randn(32)
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w.double()
    yield Case("rms_norm", "strided", (x, w, 1e-6), expected, 40 * F32 * expected.abs())


def turn(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, neox: bool, R: int) -> Tensor:
    """Rotary positions on the first ``R`` channels of float64 ``x``."""
    c, s = cos[positions][:, :, None].double(), sin[positions][:, :, None].double()
    a, b = (x[..., : R // 2], x[..., R // 2 : R]) if neox else (x[..., 0:R:2], x[..., 1:R:2])
    first, second = a * c - b * s, b * c + a * s
    turned = (
        torch.cat([first, second], -1) if neox else torch.stack([first, second], -1).flatten(-2)
    )
    return torch.cat([turned, x[..., R:]], -1)


def rope_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for neox in (True, False):
            for B, T, H, D, R in (
                (1, 1, 1, 8, 8),
                (2, 5, 3, 64, 64),
                (2, 3, 2, 80, 32),
                (0, 4, 2, 16, 16),
                (1, 7, 4, 128, 128),
            ):
                x = torch.randn(B, T, H, D).to(dtype)
                angle = torch.arange(50)[:, None] * torch.logspace(0, -3, R // 2)
                cos, sin = angle.cos(), angle.sin()
                positions = torch.randint(0, 50, (B, T))
                expected = turn(x.double(), cos, sin, positions, neox, R)
                bound = 8 * F32 * expected.abs().amax() if expected.numel() else 0.0
                name = f"{dtype}-{'neox' if neox else 'gptj'}-{B}x{T}x{H}x{D}-r{R}"
                yield Case(
                    "rope_",
                    name,
                    (x, cos, sin, positions, neox),
                    expected,
                    rounding(expected, dtype) + bound,
                )


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float, causal: bool, window: int
) -> Tensor:
    """The header's formula, one query at a time, in float64."""
    B, T, H, _ = q.shape
    S, Hk = k.shape[1:3]
    out = torch.zeros(B, T, Hk, H // Hk, v.shape[3], dtype=torch.float64)
    for b in range(B):
        length = S if lengths is None else int(lengths[b])
        queries = q[b].double().unflatten(1, (Hk, -1)) * scale
        keys, values = k[b, :length].double(), v[b, :length].double()
        for t in range(T):
            p = length - T + t
            seen = slice(
                max(0, p - window + 1) if window else 0,
                max(0, min(length, p + 1)) if causal else length,
            )
            weights = torch.einsum("hgd,shd->hgs", queries[t], keys[seen]).softmax(-1)
            out[b, t] = torch.einsum("hgs,shd->hgd", weights, values[seen])
    return out.flatten(2, 3)


def attention_cases() -> Iterator[Case]:
    shapes = [
        # B, T, S, H, Hk, D, causal, window, lengths
        (1, 1, 1, 1, 1, 8, True, 0, None),
        (2, 1, 37, 8, 2, 64, True, 0, [37, 5]),
        (2, 3, 20, 6, 6, 80, True, 0, [3, 20]),
        (1, 33, 33, 4, 1, 64, True, 0, None),
        (1, 70, 70, 7, 1, 32, True, 16, None),
        (2, 4, 19, 4, 2, 128, False, 0, [19, 0]),
        (1, 5, 3, 2, 1, 16, True, 0, None),  # the first queries stand before the first key
        (0, 2, 4, 2, 1, 16, True, 0, None),
        (1, 1, 700, 4, 2, 64, True, 0, None),
        # More than one tile of rows and of keys, on either side of the GPU kernels' sizes.
        (1, 150, 333, 4, 2, 128, True, 0, [300]),
        (2, 66, 200, 6, 2, 96, True, 70, [200, 91]),
        (1, 70, 130, 2, 2, 256, True, 0, None),
        (3, 40, 65, 4, 1, 64, False, 0, [65, 64, 1]),
        (1, 17, 90, 3, 3, 20, False, 0, None),
        (1, 9, 40, 2, 1, 300, True, 0, [33]),
        (1, 2, 0, 2, 1, 16, True, 0, None),
        # Few queries and many keys: several blocks share the keys of one query.
        (2, 20, 1300, 4, 1, 64, True, 0, [1300, 200]),
        (1, 6, 1300, 4, 1, 128, True, 500, [1100]),
        (2, 5, 1300, 4, 1, 192, False, 0, [0, 1300]),
    ]
    for dtype in DTYPES:
        for B, T, S, H, Hk, D, causal, window, lengths in shapes:
            q, k, v = (torch.randn(B, n, h, D).to(dtype) for n, h in ((T, H), (S, Hk), (S, Hk)))
            n = None if lengths is None else torch.tensor(lengths)
            if n is not None:  # what lies beyond a length must not be read into a result
                for b, length in enumerate(lengths or []):
                    k[b, length:], v[b, length:] = torch.nan, torch.nan
            scale = D**-0.5
            args = (q, k, v, n, scale, causal, window)
            name = f"{dtype}-b{B}t{T}s{S}h{H}k{Hk}d{D}-causal{int(causal)}-w{window}"
            yield Case("attention", name, args, *expected_attention(args))
        # Views: q from a fused projection, keys and values as a cache holds them; then addresses that no 16 bytes divide.
        for offset in (0, 1):
            q = torch.randn(2, 19, 4 + 2 * 2, 64 + offset).to(dtype)[:, :, :4, offset:]
            k, v = torch.randn(2, 2, 2, 50, 64 + offset).to(dtype)[..., offset:].transpose(2, 3)
            n = torch.tensor([41, 50])
            for scale in (0.125, -0.125):
                args = (q, k, v, n, scale, True, 0)
                name = f"{dtype}-views-offset{offset}-scale{scale}"
                yield Case("attention", name, args, *expected_attention(args))


def expected_attention(args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """And how far from it, for scores of standard normal numbers with ``scale = D ** -0.5``."""
    q, k, v, *rest = args
    S, D, unit = k.shape[1], q.shape[3], UNIT[v.dtype]
    expected, size = plain_attention(q, k, torch.cat([v, v.abs()], -1), *rest).chunk(2, -1)
    # Scores of size |q||k|scale carry D roundings; the softmax turns them into a relative error of the weights.
    scores = 4.0 * D**0.5 * (D + 8) * F32 + (S + 16) * F32
    # Tensor cores take the weights in the dtype of the values.
    weights = 0.0 if v.dtype == torch.float32 else unit
    return expected, scores * 5.0 + 4 * unit * expected.abs() + weights * size + 1e-6


def gate_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in ((1, 1), (3, 33), (0, 4), (2, 3, 100), (3, 2064)):
            both = (torch.randn(*shape[:-1], 2 * shape[-1]) * 4).to(dtype)
            gate, up = both.chunk(2, -1)  # views, as the fused matrix gives them
            g, u = gate.double(), up.double()
            forms: list[tuple[str, tuple[Any, ...], Tensor]] = [
                ("silu_mul", (gate, up), torch.nn.functional.silu(g) * u),
                ("gelu_mul", (gate, up, False), torch.nn.functional.gelu(g) * u),
                ("gelu_mul", (gate, up, True), torch.nn.functional.gelu(g, approximate="tanh") * u),
            ]
            for op, args, expected in forms:
                # In the negative tail gelu is a difference of two numbers near 1, so its error is that of 1.
                bound = 16 * F32 * (expected.abs() + (g * u).abs()) + rounding(expected, dtype)
                yield Case(op, f"{dtype}-{shape}-{args[2:]}", args, expected, bound)


def embedding_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in ((1,), (2, 3), (0,), (2, 0)):
            table = torch.randn(11, 24).to(dtype)
            ids = torch.randint(0, 11, shape)
            yield Case(
                "embedding", f"{dtype}-{shape}", (ids, table, torch.float32), table[ids].double()
            )
        for out in DTYPES:
            for D in (21, 2088):
                table, ids = torch.randn(11, D).to(dtype), torch.randint(0, 11, (5,))
                expected = table[ids].double()
                bound = rounding(expected, out)
                yield Case("embedding", f"{dtype}-{out}-{D}", (ids, table, out), expected, bound)


def plain_sample(
    row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, random: float
) -> int:
    """The header's order of steps on one row, in float64."""
    if bool(row.isnan().any()) or bool((row == -torch.inf).all()):
        return -1
    if temperature == 0:
        return int(row.argmax())
    p = (row.double() / temperature).softmax(0)
    order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))
    kept = order[: top_k or None]
    cut, mass = len(kept), 0.0
    for i, token in enumerate(kept):
        mass += float(p[token])
        if mass >= top_p:
            cut = i + 1
            break
    kept = [t for t in kept[:cut] if float(p[t]) >= min_p * float(p[order[0]])]
    target, running = random * sum(float(p[t]) for t in kept), 0.0
    for token in kept:
        running += float(p[token])
        if running > target:
            return token
    return kept[-1]


def sample_cases() -> Iterator[Case]:
    settings = [
        (0.0, 0, 1.0, 0.0),
        (1.0, 0, 1.0, 0.0),
        (0.7, 5, 1.0, 0.0),
        (1.3, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.2),
        (0.9, 20, 0.9, 0.05),
    ]
    for V in (1, 7, 300):
        rows = torch.randn(len(settings), V) * 3
        random = torch.rand(len(settings)) * 0.98 + 0.01
        t, k, p, m = (torch.tensor(column) for column in zip(*settings, strict=True))
        want = [plain_sample(rows[i], *settings[i], float(random[i])) for i in range(len(settings))]
        yield Case("sample", f"v{V}", (rows, t, k, p, m, random), torch.tensor(want))
    one = torch.ones(1)
    odd = {
        "ties": (torch.tensor([[1.0, 3.0, 3.0]]), one * 0, 1),
        "nan": (torch.tensor([[1.0, torch.nan]]), one, -1),
        "all-minus-inf": (torch.full((1, 4), -torch.inf), one, -1),
        "masked": (torch.tensor([[-torch.inf, 0.5, -torch.inf]]), one, 1),
    }
    for name, (logits, temperature, token) in odd.items():
        args = (logits, temperature, torch.zeros(1, dtype=torch.int64), one, one * 0, one * 0.999)
        yield Case("sample", name, args, torch.tensor([token]))
    logits = torch.randn(3, 9)
    tokens = torch.tensor([[0, 0, 8, -1], [-1, -1, -1, -1], [3, 4, 5, 3]])
    penalty = torch.tensor([1.5, 2.0, 1.0])
    expected = logits.double()
    for b in range(3):
        for token in set(tokens[b].tolist()) - {-1}:
            expected[b, token] *= (
                float(penalty[b]) if expected[b, token] < 0 else 1 / float(penalty[b])
            )
    yield Case(
        "repetition_penalty_",
        "three",
        (logits, tokens, penalty),
        expected,
        4 * F32 * expected.abs(),
    )
