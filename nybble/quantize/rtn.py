"""Round to nearest in EXL2's numbers: 4-bit scale indices under one half-precision maximum a group, no calibration text.

A group is ``R`` rows of one width. Its scales are ``s[n] = r16((index[n] + 1)^2 * r16(maximum / 256))`` and its weights
``(code - 2^(bits-1)) * s[n]``. What remains to choose is ``maximum`` and ``index[n]``; both are searched for the smallest
squared error, which is what rounding to nearest alone leaves on the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Tried steps, as shares of the step that reaches a column's largest weight. Below 0.4 clipping always costs more than it
# saves, at 2 bits too; above 1.15 the step is only coarser.
_LADDER = torch.logspace(-0.92, 0.14, 22, base=2.718281828).float()
# Tried group maxima, as shares of the largest of the columns' best steps.
_MAXIMA = torch.logspace(-0.7, 0.15, 28, base=2.718281828).float()
_SMALLEST_MAXIMUM = (
    2.0**-14
)  # maximum / 256 must not round to zero in half precision (smallest step 2^-24)
_CHUNK = 1 << 19  # elements worked on at once: a few buffers of this size stay in the cache


@dataclass(frozen=True)
class GroupFit:
    """One quantized group: ``W[r, n] ~ (codes[r, n] - 2^(bits-1)) * scales[n]``."""

    codes: Tensor  # uint8 [R, N]
    index: Tensor  # uint8 [N], 0 to 15
    maximum: Tensor  # float16 [], largest scale of the group


def scale_of(index: Tensor, maximum: Tensor) -> Tensor:
    """``r16((index + 1)^2 * r16(maximum / 256))`` as float32, each rounding to half precision, ties to even.

    Args:
        index: integers 0 to 15, any shape. maximum: float16, broadcastable to it.

    >>> scale_of(torch.tensor([0, 15]), torch.tensor(0.01229095, dtype=torch.float16)).half().view(torch.int16).tolist()
    [806, 8780]
    """
    unit = (maximum.float() / 256).half().float()
    return ((index.float() + 1).square() * unit).half().float()


def fit_group(weight: Tensor, bits: int) -> GroupFit:
    """Choose maximum, scale indices and codes of one group for the least squared error.

    Args:
        weight: float32 ``[R, N]``. bits: 2, 3, 4, 5, 6 or 8.

    >>> fit = fit_group(torch.tensor([[0.5, -1.0], [0.25, 0.0]]), 4)
    >>> fit.codes.shape, fit.index.dtype
    (torch.Size([2, 2]), torch.uint8)
    """
    rows, columns = weight.shape
    half = 1 << (bits - 1)
    width = max(32, _CHUNK // rows)
    parts = [weight[:, c : c + width].contiguous() for c in range(0, columns, width)]
    # The step that just reaches the largest weight on either side: codes go from -half to half - 1.
    reach = torch.cat(
        [torch.maximum(p.amax(0) / (half - 1), -p.amin(0) / half) for p in parts]
    ).clamp_min(1e-12)
    curve = torch.empty(len(_LADDER), columns)
    for t, ratio in enumerate(_LADDER.tolist()):
        curve[t] = _errors(parts, reach * ratio, half)
    maximum = _best_maximum(curve, reach)
    index = _best_index(curve, reach, maximum)
    # The curve is interpolated; settle each column between its index and the two beside it exactly.
    candidates = [(index + step).clamp(0, 15) for step in (-1, 0, 1)]
    exact = torch.stack([_errors(parts, scale_of(c, maximum), half) for c in candidates])
    index = torch.stack(candidates).gather(0, exact.argmin(0, keepdim=True))[0]
    scales = scale_of(index, maximum)
    codes = (weight / scales).round_().clamp_(-half, half - 1).add_(half).to(torch.uint8)
    return GroupFit(codes=codes, index=index.to(torch.uint8), maximum=maximum)


def _errors(parts: list[Tensor], steps: Tensor, half: int) -> Tensor:
    """Squared error of each column at ``steps`` ``[N]``."""
    out = []
    start = 0
    for part in parts:
        step = steps[start : start + part.shape[1]]
        start += part.shape[1]
        rest = (part * (1 / step)).round_().clamp_(-half, half - 1).mul_(step).sub_(part)
        out.append(rest.square_().sum(0))
    return torch.cat(out)


def _best_maximum(curve: Tensor, reach: Tensor) -> Tensor:
    """The group maximum whose 16 steps serve all columns best, read from their error curves."""
    best = reach * _LADDER[curve.argmin(0)]
    tried = (best.max() * _MAXIMA).clamp_min(_SMALLEST_MAXIMUM).half()
    totals = torch.stack([_on_curve(curve, reach, m).amin(0).sum() for m in tried])
    return tried[totals.argmin()]


def _best_index(curve: Tensor, reach: Tensor, maximum: Tensor) -> Tensor:
    return _on_curve(curve, reach, maximum).argmin(0)


def _on_curve(curve: Tensor, reach: Tensor, maximum: Tensor) -> Tensor:
    """Error ``[16, N]`` at each of the 16 steps under ``maximum``, interpolated on ``curve`` ``[T, N]``."""
    T = curve.shape[0]
    low, high = _LADDER[0].log(), _LADDER[-1].log()
    steps = scale_of(torch.arange(16), maximum)[:, None]
    place = ((steps / reach).clamp_min(1e-12).log() - low) / (high - low) * (T - 1)
    left = place.floor().clamp(0, T - 2).long()
    part = (place - left).clamp(0, 1)
    inside = curve.gather(0, left) * (1 - part) + curve.gather(0, left + 1) * part
    # Outside the ladder both clipping (below) and coarseness (above) grow at least with the square of the distance.
    beyond = torch.maximum(place - (T - 1), -place).clamp_min(0) * ((high - low) / (T - 1))
    return inside * (2 * beyond).exp()
