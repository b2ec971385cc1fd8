"""Meaning of ``sample_chain``."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nybble.ops.reference import check

NOISE = 1e-8  # what is less probable, a sort leaves behind the others and as it was
# Probabilities float64 [n] and ids int64 [n] of the candidates, in their order.
Candidates = tuple[Tensor, Tensor]


def sample_chain(
    logits: Tensor,
    temperature: Tensor,
    allowed: Tensor | None,
    removable: Tensor | None,
    steps: list[int],
    values: Tensor,
    random: Tensor,
    top: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token a row: softmax, the steps in turn, inverse transform; and the first ``top`` candidates."""
    _check(logits, temperature, allowed, removable, steps, values, random, top)
    B = logits.shape[0]
    token = torch.full((B,), -1)
    probability = torch.zeros(B)
    top_tokens, top_probabilities = torch.full((B, top), -1), torch.zeros(B, top)
    may_go = None if removable is None else removable.cpu()
    for b in range(B):
        row = logits[b].cpu()
        if allowed is not None:
            row = row.masked_fill(~allowed[b].cpu(), -math.inf)
        candidates = _start(row, float(temperature[b]))
        if candidates is None:
            continue
        p, ids = _apply(candidates, steps, values[b].tolist(), may_go)
        n = min(top, int((p[:top] > 0).cumprod(0).sum()))
        top_tokens[b, :n], top_probabilities[b, :n] = ids[:n], p[:n].float()
        chosen = _draw(p, float(random[b]))
        token[b], probability[b] = ids[chosen], p[chosen].float()
    device = logits.device
    return (
        token.to(device),
        probability.to(device),
        top_tokens.to(device),
        top_probabilities.to(device),
    )


def _start(row: Tensor, temperature: float) -> Candidates | None:
    largest = row.max()
    if bool(row.isnan().any()) or largest == -math.inf:
        return None
    if temperature == 0:
        return torch.ones(1, dtype=torch.float64), (row == largest).nonzero()[0]
    if largest == math.inf:  # infinite logits share the mass equally
        row, largest = (row == largest).float().log(), torch.zeros(())
    return ((row - largest) / temperature).double().softmax(0), torch.arange(row.numel())


def _apply(
    candidates: Candidates, steps: list[int], values: list[float], removable: Tensor | None
) -> Candidates:
    for number in steps:
        function, count = STEPS[number]
        taken, values = values[:count], values[count:]
        if function is _xtc:
            candidates = _xtc(*candidates, taken[0], taken[1], removable)
        else:
            candidates = function(*candidates, *taken)
    return candidates


def _draw(p: Tensor, random: float) -> int:
    running = p.cumsum(0)
    possible = p > 0
    beyond = possible & (running > random * running[-1])
    return int(beyond.nonzero()[0] if bool(beyond.any()) else possible.nonzero()[-1])


def _keep(p: Tensor, ids: Tensor, which: Tensor | slice) -> Candidates:
    return p[which] / p[which].sum(), ids[which]


def _order(key: Tensor, ids: Tensor) -> Tensor:
    """Places by key, then by id, descending."""
    by_id = ids.argsort(descending=True)
    return by_id[key[by_id].argsort(descending=True, stable=True)]


def _sort(p: Tensor, ids: Tensor) -> Candidates:
    real = (p >= NOISE).nonzero()[:, 0]
    order = torch.cat([real[_order(p[real], ids[real])], (p < NOISE).nonzero()[:, 0]])
    return p[order], ids[order]


def _top_k(p: Tensor, ids: Tensor, k: float) -> Candidates:
    if k < 1 or k >= p.numel():
        return p, ids
    last = p.topk(int(k)).values[-1]
    enough = ((p >= last).cumsum(0) <= int(k)) & (p >= last)
    possible = ((p > last) | enough).nonzero()[:, 0]
    order = _order(p[possible], ids[possible])[: int(k)]
    return _keep(p, ids, possible[order])


def _top_p(p: Tensor, ids: Tensor, mass: float) -> Candidates:
    if mass >= 1:
        return p, ids
    p, ids = _sort(p, ids)
    return _keep(p, ids, slice(int((p.cumsum(0) < mass).sum()) + 1))


def _top_p_stream(p: Tensor, ids: Tensor, mass: float) -> Candidates:
    if mass >= 1:
        return p, ids
    heap: list[tuple[float, int]] = []
    total = 0.0
    for one in zip(p.tolist(), ids.tolist(), strict=True):
        if one[0] < 1e-6:
            continue
        heapq.heappush(heap, one)
        total += one[0]
        while total > mass and len(heap) > 1:
            total -= heapq.heappop(heap)[0]
    if not heap:
        return p, ids
    kept = torch.tensor(sorted(heap, reverse=True), dtype=torch.float64)
    return _keep(kept[:, 0], kept[:, 1].long(), slice(None))


def _drop_below(p: Tensor, ids: Tensor, least: float) -> Candidates:
    order = list(range(p.numel()))
    good = (p >= least).tolist()
    count = sum(good)
    holes = [i for i in range(count) if not good[i]]
    for hole, last in zip(holes, [i for i in reversed(order) if good[i]], strict=False):
        order[hole] = last
    return _keep(p, ids, torch.tensor(order[:count]))


def _min_p(p: Tensor, ids: Tensor, share: float) -> Candidates:
    return _drop_below(p, ids, min(share, 1.0) * float(p.max()))


def _top_a(p: Tensor, ids: Tensor, a: float) -> Candidates:
    most = float(p.max())
    return _drop_below(p, ids, min(a * most * most, most))


def _tail_free(p: Tensor, ids: Tensor, z: float) -> Candidates:
    if z >= 1 or p.numel() < 3:
        return p, ids
    p, ids = _sort(p, ids)
    real = p[p >= NOISE]
    bends = (real[:-2] - 2 * real[1:-1] + real[2:]).abs() if real.numel() > 2 else real[:0]
    within = int((bends.cumsum(0) <= z * bends.sum()).long().cumprod(0).sum())
    return _keep(p, ids, slice(within + 1))


def _by_height(p: Tensor, ids: Tensor, height: Callable[[Tensor], Tensor]) -> Candidates:
    """Without noise, ascending by the distance of ``height(p)`` from its mean."""
    p, ids = p[p >= NOISE], ids[p >= NOISE]
    y = height(p)
    order = _order(-(y - (p * y).sum()).abs(), ids)
    return p[order], ids[order]


def _typical(p: Tensor, ids: Tensor, mass: float) -> Candidates:
    if mass >= 1:
        return p, ids
    p, ids = _by_height(p, ids, torch.log)
    return _keep(p, ids, slice(int((p.cumsum(0) < mass).sum()) + 1))


def _typical_below(p: Tensor, ids: Tensor, mass: float) -> Candidates:
    if mass >= 1:
        return p, ids
    p, ids = _by_height(p, ids, lambda q: q + (q + 1e-10).log())
    return _keep(p, ids, slice(max(1, int((p.cumsum(0) < mass).sum()))))


def _surprise(p: Tensor, ids: Tensor, bits: float) -> Candidates:
    if bits == math.inf:
        return p, ids
    p, ids = _sort(p, ids)
    return _keep(p, ids, slice(max(1, int((p >= max(2.0**-bits, NOISE)).sum()))))


def _temper(p: Tensor, ids: Tensor, t: float) -> Candidates:
    if t == 1:
        return p, ids
    q = (p / p.max()) ** (1 / t if t > 0 else math.inf)
    return q / q.sum(), ids


def _dynamic_temper(p: Tensor, ids: Tensor, low: float, high: float, power: float) -> Candidates:
    if p.numel() < 2:
        return p, ids
    share = min(1.0, max(0.0, -float(torch.xlogy(p, p).sum())) / math.log(p.numel()))
    return _temper(p, ids, low + (high - low) * share**power)


def _xtc(
    p: Tensor, ids: Tensor, chance: float, threshold: float, removable: Tensor | None
) -> Candidates:
    exceeds = p >= threshold
    if removable is not None:
        exceeds &= removable[ids]
    places = exceeds.nonzero()[:, 0].tolist()
    if not places:
        return p, ids
    spared = min(places, key=lambda i: (float(p[i]), -i))
    exceeds[spared] = False
    lost, others = p[exceeds].sum(), p[~exceeds].sum()
    if others == 0:
        return p, ids
    return torch.where(exceeds, p * (1 - chance), p * (1 + chance * lost / others)), ids


# In the order of SampleStep in csrc/ops/sample.h; with the number of values.
STEPS: tuple[tuple[Callable[..., Candidates], int], ...] = (
    (_top_k, 1),
    (_top_p, 1),
    (_top_p_stream, 1),
    (_min_p, 1),
    (_top_a, 1),
    (_tail_free, 1),
    (_typical, 1),
    (_typical_below, 1),
    (_surprise, 1),
    (_temper, 1),
    (_dynamic_temper, 3),
    (_xtc, 2),
    (_sort, 0),
)


def _check(
    logits: Tensor,
    temperature: Tensor,
    allowed: Tensor | None,
    removable: Tensor | None,
    steps: Sequence[int],
    values: Tensor,
    random: Tensor,
    top: int,
) -> None:
    op = "sample_chain"
    check.dtype(op, torch.float32, logits=logits, temperature=temperature, values=values)
    check.dtype(op, torch.float32, random=random)
    check.dtype(op, torch.bool, allowed=allowed, removable=removable)
    check.rank(op, "logits", logits, "B, V", 2)
    B, V = logits.shape
    check.shape(op, "temperature", temperature, "B", B)
    check.shape(op, "random", random, "B", B)
    check.shape(op, "allowed", allowed, "B, V", B, V)
    check.shape(op, "removable", removable, "V", V)
    for step in steps:
        check.require(0 <= step < len(STEPS), f"{op}: steps has {step}, which is no step")
    check.shape(op, "values", values, "B, C", B, sum(STEPS[step][1] for step in steps))
    check.require(0 <= top <= V, f"{op}: top is {top}, expected 0 to V = {V}")
    check.require(B == 0 or V > 0, f"{op}: logits has no columns, expected V >= 1")
    # Each comparison is false for NaN.
    check.require(bool((temperature >= 0).all()), f"{op}: temperature must be 0 or more")
    check.require(bool(((random >= 0) & (random < 1)).all()), f"{op}: random must be in [0, 1)")
    most = torch.tensor([limit for step in steps for limit in _limits(step)], device=values.device)
    good = (values >= 0) & (values <= most)
    check.require(bool(good.all()), f"{op}: values are out of range, expected 0 or more")


def _limits(step: int) -> list[float]:
    function, count = STEPS[step]
    if function is _xtc:
        return [1.0, math.inf]
    if function is _dynamic_temper:
        return [torch.finfo(torch.float32).max] * 3
    return [math.inf] * count
