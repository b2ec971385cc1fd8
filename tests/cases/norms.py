"""Norms that write elsewhere than a new tensor like x, norms by head, and the soft cap."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.cases.base import DTYPES, F32, Case, rounding

EPS = 1e-5
# Rows of a head, of every length a kernel treats apart; no rows; no heads.
SHAPES = ((4, 8), (2, 3, 33), (5, 1, 7), (2, 2, 3, 80), (0, 2, 16), (3, 0, 16), (2, 3, 0))


def normed(x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both norms in float64 and the size of each one's float32 error."""
    x, w = x.double(), w.double()
    bias = torch.zeros_like(w) if b is None else b.double()
    rms = x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * w
    mean = x.mean(-1, keepdim=True)
    deviation = ((x - mean).pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    layer = (x - mean) / deviation * w + bias
    # The mean is rounded once to float32; its error is divided by the deviation.
    slack = (x.abs() + mean.abs()) / deviation * w.abs() + bias.abs()
    return rms, 32 * F32 * rms.abs(), layer, 32 * F32 * slack


def norm_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in SHAPES:
            name = f"heads-{dtype}-{shape}"
            x = torch.randn(shape).to(dtype) * 2 + 1
            w, b = torch.randn(shape[-2:]), torch.randn(shape[-2:])
            rms, rms_slack, layer, layer_slack = normed(x, w, b)
            rms_slack, layer_slack = (
                rms_slack + rounding(rms, dtype),
                layer_slack + rounding(layer, dtype),
            )
            yield Case("rms_norm", name, (x, w, EPS), rms, rms_slack)
            yield Case("rms_norm_", name, (x, w, EPS), rms, rms_slack)
            yield Case("layer_norm", name, (x, w, b, EPS), layer, layer_slack)
            yield Case("layer_norm_", name, (x, w, b, EPS), layer, layer_slack)
    for dtype in DTYPES:
        for out in DTYPES:
            x, w = torch.randn(3, 50).to(dtype), torch.randn(50).to(out)
            rms, rms_slack, layer, layer_slack = normed(x, w, None)
            for op, args, expected, slack in (
                ("rms_norm", (x, w, EPS, out), rms, rms_slack),
                ("layer_norm", (x, w, None, EPS, out), layer, layer_slack),
            ):
                bound = slack + rounding(expected, out)
                yield Case(op, f"{dtype}-to-{out}", args, expected, bound)
    # Lengths on both sides of what a GPU's threads hold at once, in rows that start at any number or at every eighth.
    for dtype in DTYPES:
        for D in (64, 136, 1000, 1032, 4104, 8200, 16384, 16392):
            for skipped in (0, 1, 8):
                wide = (torch.randn(3, D + skipped) * 2 + 1).to(dtype)
                x, w, b = wide[:, skipped:], torch.randn(D).to(dtype), torch.randn(D).to(dtype)
                rms, rms_slack, layer, layer_slack = normed(x, w, b)
                name = f"{dtype}-{D}-after-{skipped}"
                yield Case("rms_norm", name, (x, w, EPS), rms, rms_slack + rounding(rms, dtype))
                bound = layer_slack + rounding(layer, dtype)
                yield Case("layer_norm", name, (x, w, b, EPS), layer, bound)
    # Dimensions that no single row stride describes, with every element in its place.
    x, w = torch.randn(4, 6, 32).transpose(0, 1), torch.randn(32)
    rms, rms_slack, layer, layer_slack = normed(x, w, None)
    yield Case("rms_norm_", "swapped", (x, w, EPS), rms, rms_slack)
    yield Case("layer_norm_", "swapped", (x, w, None, EPS), layer, layer_slack)


def softcap_cases() -> Iterator[Case]:
    views = {"swapped": torch.randn(4, 6, 31).mul(40).transpose(0, 1)}
    for cap in (0.5, 30.0):
        for dtype in DTYPES:
            for shape in ((1,), (3, 33), (2, 0), (1, 2, 4099)):
                views[f"{dtype}-{shape}"] = (torch.randn(shape) * 20).to(dtype)
            # Both ends of the range, and where the polynomial near 0 meets the other form.
            views[f"{dtype}-wide"] = (
                torch.tensor(
                    [
                        0.0,
                        1e-4,
                        -1e-3,
                        0.62,
                        0.63,
                        -0.62,
                        -0.63,
                        20.0,
                        6e4,
                        -6e4,
                        torch.inf,
                        -torch.inf,
                    ]
                )
                .mul(cap)
                .to(dtype)
            )
        for name, x in views.items():
            expected = cap * (x.double() / cap).tanh()
            bound = 16 * F32 * expected.abs() + rounding(expected, x.dtype)
            yield Case("softcap_", f"{name}-cap{cap}", (x, cap), expected, bound)
