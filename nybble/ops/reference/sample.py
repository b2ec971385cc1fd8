"""Meaning of ``sample`` and ``repetition_penalty_``."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble.ops.reference import check


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    random: Tensor,
) -> Tensor:
    """One token a row: temperature, softmax, top-k, top-p, min-p, inverse transform."""
    _check(logits, temperature, top_k, top_p, min_p, random)
    tokens = [
        _one(row.float(), float(t), int(k), float(p), float(m), float(r))
        for row, t, k, p, m, r in zip(logits, temperature, top_k, top_p, min_p, random, strict=True)
    ]
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def _one(row: Tensor, temperature: float, k: int, p: float, m: float, r: float) -> int:
    largest = row.max()
    if bool(row.isnan().any()) or largest == float("-inf"):
        return -1
    if temperature == 0:
        return int((row == largest).nonzero()[0])
    if largest == float("inf"):  # infinite logits share the mass equally
        row, largest = (row == largest).float().log(), torch.zeros_like(largest)
    probability = ((row - largest) / temperature).double().softmax(0)
    sorted_p, ids = probability.sort(descending=True, stable=True)  # stable: ties by id
    keep = sorted_p.numel() if k == 0 else min(k, sorted_p.numel())
    if p < 1:
        # The shortest prefix of the whole distribution, not of what top-k left.
        keep = min(keep, int((sorted_p.cumsum(0) < p).sum()) + 1)
    if m > 0:
        keep = min(keep, int((sorted_p >= m * sorted_p[0]).sum()))
    running = sorted_p[:keep].cumsum(0)
    chosen = int((running <= r * running[-1]).sum())
    return int(ids[min(chosen, keep - 1)])


def repetition_penalty_(
    logits: Tensor,
    tokens: Tensor,
    penalty: Tensor,
    frequency: Tensor | None = None,
    presence: Tensor | None = None,
    sustain: int = -1,
    decay: int = 0,
) -> None:
    """Times or divided by the penalty, minus presence, once a distinct token; minus frequency each time; in place."""
    op = "repetition_penalty_"
    check.dtype(op, torch.float32, logits=logits, penalty=penalty)
    check.dtype(op, torch.float32, frequency=frequency, presence=presence)
    check.dtype(op, torch.int64, tokens=tokens)
    check.rank(op, "logits", logits, "B, V", 2)
    check.rank(op, "tokens", tokens, "B, L", 2)
    B, V = logits.shape
    check.shape(op, "tokens", tokens, "B, L", B, tokens.shape[1])
    for name, t in {"penalty": penalty, "frequency": frequency, "presence": presence}.items():
        check.shape(op, name, t, "B", B)
        check.require(t is None or not bool(t.isnan().any()), f"{op}: {name} must be a number")
    check.within(op, "tokens", tokens, -1, V)
    check.require(bool((penalty > 0).all()), f"{op}: penalty must be more than 0")
    check.require(sustain >= -1, f"{op}: sustain is {sustain}, expected -1 (all tokens) or more")
    check.require(decay >= 0, f"{op}: decay is {decay}, expected 0 or more")
    zero = torch.zeros_like(penalty)
    often = zero if frequency is None else frequency
    once = zero if presence is None else presence
    strength = _strength(tokens.shape[1], sustain, decay)
    for b in range(B):
        first, total = torch.zeros(V, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
        for at, t in zip(strength, reversed(tokens[b].tolist()), strict=True):
            if t >= 0:
                first[t] = first[t] if total[t] > 0 else at
                total[t] += at
        first, total = first.to(logits.device), total.to(logits.device)
        factor = 1 + first * (penalty[b].double() - 1)
        row = logits[b].double()
        row = torch.where(row < 0, row * factor, row / factor)
        # Nothing of what is off, which may be 0 * inf.
        row = torch.where(first > 0, row - first * once[b] - total * often[b], logits[b].double())
        logits[b] = row.float()


def _strength(L: int, sustain: int, decay: int) -> list[float]:
    """Of each place, from the last token backwards."""
    full = L if sustain < 0 else min(sustain, L)
    falling = [max(0.0, 1 - k / decay) if decay else 0.0 for k in range(L - full)]
    return [1.0] * full + falling


def _check(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    random: Tensor,
) -> None:
    op = "sample"
    check.dtype(op, torch.float32, logits=logits)
    check.rank(op, "logits", logits, "B, V", 2)
    B, V = logits.shape
    floats = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "random": random}
    check.dtype(op, torch.float32, **floats)
    check.dtype(op, torch.int64, top_k=top_k)
    for name, t in (floats | {"top_k": top_k}).items():
        check.shape(op, name, t, "B", B)
    check.require(B == 0 or V > 0, f"{op}: logits has no columns, expected V >= 1")
    # Each comparison is false for NaN.
    ranges = {
        "temperature": (temperature >= 0, "0 or more"),
        "top_k": (top_k >= 0, "0 (off) or more"),
        "top_p": ((top_p >= 0) & (top_p <= 1), "0 to 1"),
        "min_p": ((min_p >= 0) & (min_p <= 1), "0 to 1"),
        "random": ((random >= 0) & (random < 1), "0 to 1, without 1"),
    }
    for name, (good, expected) in ranges.items():
        check.require(bool(good.all()), f"{op}: {name} is out of range, expected {expected}")
