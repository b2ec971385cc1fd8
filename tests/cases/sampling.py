"""Cases of the choice of the next token: chains of steps, penalties, and vocabularies of a real size."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nybble.ops import sample_steps as chain
from tests.cases.base import F32, Case
from tests.cases.core import plain_sample

# Candidates of the plain walk: pairs of probability and id, in their order.
Pairs = list[tuple[float, int]]


def descending(pairs: Pairs) -> Pairs:
    """What is below 1e-8 stays behind, unsorted."""
    real = sorted((c for c in pairs if c[0] >= 1e-8), reverse=True)
    return real + [c for c in pairs if c[0] < 1e-8]


def top_k(pairs: Pairs, k: float) -> Pairs:
    """A heap of the first k, whose smallest gives way to what is larger."""
    if k < 1 or k >= len(pairs):
        return pairs
    heap = pairs[: int(k)]
    heapq.heapify(heap)
    for candidate in pairs[int(k) :]:
        if candidate[0] > heap[0][0]:
            heapq.heapreplace(heap, candidate)
    return sorted(heap, reverse=True)


def top_p(pairs: Pairs, p: float) -> Pairs:
    if p >= 1:
        return pairs
    kept: Pairs = []
    for candidate in descending(pairs):
        kept.append(candidate)
        if sum(q for q, _ in kept) >= p:
            break
    return kept


def top_p_stream(pairs: Pairs, p: float) -> Pairs:
    if p >= 1:
        return pairs
    kept: Pairs = []
    for candidate in pairs:
        if candidate[0] >= 1e-6:
            kept.append(candidate)
            while sum(q for q, _ in kept) > p and len(kept) > 1:
                kept.remove(min(kept))
    return sorted(kept, reverse=True)


def drop_below(pairs: Pairs, least: float) -> Pairs:
    """Two fingers: the left one stops at a hole, the right one at what fills it."""
    kept, left, right = list(pairs), 0, len(pairs) - 1
    while left <= right:
        if kept[left][0] >= least:
            left += 1
        elif kept[right][0] < least:
            right -= 1
        else:
            kept[left], kept[right] = kept[right], kept[left]
    return kept[:left]


def min_p(pairs: Pairs, p: float) -> Pairs:
    return drop_below(pairs, p * max(pairs)[0])


def top_a(pairs: Pairs, a: float) -> Pairs:
    most = max(pairs)[0]
    return drop_below(pairs, min(a * most**2, most))


def tail_free(pairs: Pairs, z: float) -> Pairs:
    if z >= 1 or len(pairs) < 3:
        return pairs
    pairs = descending(pairs)
    real = [q for q, _ in pairs if q >= 1e-8]
    bends = [abs(real[i] - 2 * real[i + 1] + real[i + 2]) for i in range(len(real) - 2)]
    keep, sofar = 1, 0.0
    for bend in bends:
        sofar += bend
        if sofar > z * sum(bends):
            break
        keep += 1
    return pairs[:keep]


def by_height(pairs: Pairs, heights: Sequence[float]) -> Pairs:
    mean = sum(q * y for (q, _), y in zip(pairs, heights, strict=True))
    away = [abs(y - mean) for y in heights]
    order = sorted(range(len(pairs)), key=lambda i: (away[i], -pairs[i][1]))
    return [pairs[i] for i in order]


def typical(pairs: Pairs, p: float) -> Pairs:
    if p >= 1:
        return pairs
    real = [c for c in pairs if c[0] >= 1e-8]
    kept: Pairs = []
    for candidate in by_height(real, [math.log(q) for q, _ in real]):
        kept.append(candidate)
        if sum(q for q, _ in kept) >= p:
            break
    return kept


def typical_below(pairs: Pairs, p: float) -> Pairs:
    if p >= 1:
        return pairs
    real = [c for c in pairs if c[0] >= 1e-8]
    kept: Pairs = []
    for candidate in by_height(real, [q + math.log(q + 1e-10) for q, _ in real]):
        if kept and sum(q for q, _ in kept) + candidate[0] >= p:
            break
        kept.append(candidate)
    return kept


def surprise(pairs: Pairs, bits: float) -> Pairs:
    if bits == math.inf:
        return pairs
    pairs = descending(pairs)
    return [c for i, c in enumerate(pairs) if i == 0 or -math.log2(max(c[0], 1e-300)) <= bits]


def temper(pairs: Pairs, t: float) -> Pairs:
    most, power = max(pairs)[0], 1 / t if t > 0 else math.inf
    return [((q / most) ** power, i) for q, i in pairs]


def dynamic_temper(pairs: Pairs, low: float, high: float, exponent: float) -> Pairs:
    if len(pairs) == 1:
        return pairs
    entropy = -sum(q * math.log(q) for q, _ in pairs if q > 0)
    share = min(1.0, entropy / math.log(len(pairs)))
    return temper(pairs, low + (high - low) * share**exponent)


def xtc(pairs: Pairs, chance: float, threshold: float, removable: Tensor | None) -> Pairs:
    tops = [c for c in pairs if c[0] >= threshold and (removable is None or bool(removable[c[1]]))]
    least = min((q for q, _ in tops), default=0.0)
    spared = [c for c in tops if c[0] == least][-1:]
    lost = sum(q for q, _ in tops) - least if tops else 0.0
    if lost >= 1:
        return pairs
    up = 1 + chance * lost / (1 - lost)
    return [
        (q * (1 - chance) if (q, i) in tops and (q, i) not in spared else q * up, i)
        for q, i in pairs
    ]


PLAIN = {
    chain.TopK: top_k,
    chain.TopP: top_p,
    chain.TopPStream: top_p_stream,
    chain.MinP: min_p,
    chain.TopA: top_a,
    chain.TailFree: tail_free,
    chain.Typical: typical,
    chain.TypicalBelow: typical_below,
    chain.Surprise: surprise,
    chain.Temper: temper,
    chain.DynamicTemper: dynamic_temper,
}


def walk(
    row: Tensor,
    temperature: float,
    steps: Sequence[chain.Step],
    removable: Tensor | None,
    random: float,
) -> tuple[int, float, Pairs]:
    """Token, its probability, and the candidates left, in float64."""
    if bool(row.isnan().any()) or bool((row == -torch.inf).all()):
        return -1, 0.0, []
    if temperature == 0:
        best = int((row == row.max()).nonzero()[0])
        return best, 1.0, [(1.0, best)]
    p = (row.double() / temperature).softmax(0)
    pairs: Pairs = list(zip(p.tolist(), range(len(p)), strict=True))
    for step in steps:
        values = [float(v) for v in step.values()]
        if isinstance(step, chain.Xtc):
            pairs = xtc(pairs, values[0], values[1], removable)
        elif isinstance(step, chain.Sort):
            pairs = descending(pairs)
        else:
            pairs = PLAIN[type(step)](pairs, *values)
        mass = sum(q for q, _ in pairs)
        pairs = [(q / mass, i) for q, i in pairs]
    running = 0.0
    chosen = next(c for c in reversed(pairs) if c[0] > 0)
    for candidate in pairs:
        running += candidate[0]
        if running > random:
            chosen = candidate
            break
    return chosen[1], chosen[0], pairs


def chain_case(
    name: str,
    rows: Tensor,
    steps: Sequence[chain.Step],
    random: Tensor,
    *,
    temperature: float = 1.0,
    allowed: Tensor | None = None,
    removable: Tensor | None = None,
    top: int = 5,
) -> Case:
    """The bound: rounding of the exponent's argument, which a power multiplies, and of a few sums and quotients."""
    B, V = rows.shape
    top = min(top, V)
    seen = rows if allowed is None else rows.masked_fill(~allowed, -math.inf)
    tokens, probabilities = [], []
    top_tokens = torch.full((B, top), -1)
    top_probabilities = torch.zeros(B, top, dtype=torch.float64)
    for b in range(B):
        token, probability, pairs = walk(seen[b], temperature, steps, removable, float(random[b]))
        tokens.append(token)
        probabilities.append(probability)
        for j, (q, i) in enumerate(pairs[:top]):
            if q == 0:
                break
            top_tokens[b, j], top_probabilities[b, j] = i, q
    finite = seen[seen.isfinite()]
    spread = float(finite.max() - finite.min()) if finite.numel() else 0.0
    unit = 4 * (4 * spread / max(temperature, 0.1) + 40 + V**0.5) * F32
    expected = (torch.tensor(tokens), torch.tensor(probabilities, dtype=torch.float64))
    values = torch.tensor([[float(v) for step in steps for v in step.values()]])
    return Case(
        "sample_chain",
        name,
        (
            rows,
            torch.full((B,), temperature),
            allowed,
            removable,
            [step.number for step in steps],
            values.expand(B, -1),
            random,
            top,
        ),
        (*expected, top_tokens, top_probabilities),
        (0.0, unit * expected[1], 0.0, unit * top_probabilities),
    )


CHAINS: dict[str, tuple[chain.Step, ...]] = {
    "none": (),
    "top-k": (chain.TopK(7),),
    "top-p": (chain.TopP(0.7),),
    "top-p-stream": (chain.TopPStream(0.7),),
    "min-p": (chain.MinP(0.05),),
    "top-a": (chain.TopA(0.3),),
    "tail-free": (chain.TailFree(0.8),),
    "typical": (chain.Typical(0.6),),
    "typical-below": (chain.TypicalBelow(0.6),),
    "surprise": (chain.Surprise(4.0),),
    "temper": (chain.Temper(0.6),),
    "temper-0": (chain.Temper(0.0),),
    "dynamic-temper": (chain.DynamicTemper(0.4, 1.8, 1.3),),
    "xtc": (chain.Xtc(0.5, 0.06),),
    "sort": (chain.Sort(),),
    "off": (chain.TopK(0), chain.TopP(1.0), chain.MinP(0.0), chain.Surprise(math.inf), chain.Temper(1.0)),
    "min-p-after-top-p": (chain.TopP(0.95), chain.MinP(0.2)),
    "temper-first": (chain.Temper(1.5), chain.TopK(12), chain.Typical(0.8), chain.Sort()),
    "all": (
        chain.TopK(20), chain.TopPStream(0.95), chain.TopA(0.05), chain.MinP(0.01), chain.TailFree(0.98),
        chain.TypicalBelow(0.97), chain.Surprise(6.0), chain.DynamicTemper(0.5, 1.5), chain.Xtc(0.4, 0.1), chain.Sort(),
    ),
}  # fmt: skip


def chain_cases() -> Iterator[Case]:
    for name, steps in CHAINS.items():
        for V in (1, 2, 3, 65, 300):
            rows = torch.randn(4, V) * 2.5
            random = torch.tensor([0.03, 0.41, 0.77, 0.98])
            yield chain_case(f"{name}-v{V}", rows, steps, random)
        masked = torch.rand(3, 90) < 0.5
        removable = torch.rand(90) < 0.7
        rows = torch.randn(3, 180)[:, ::2] * 2
        yield chain_case(
            f"{name}-masked-strided-hot",
            rows,
            steps,
            torch.tensor([0.2, 0.5, 0.9]),
            temperature=1.4,
            allowed=masked,
            removable=removable,
        )
    for k in (1, 2, 6, 11, 40, 64, 400):  # several logits at most places, and at the boundary
        rows = torch.randint(-2, 3, (5, 200)).float()
        random = torch.rand(5) * 0.98 + 0.01
        yield chain_case(f"top-k-ties-{k}", rows, (chain.TopK(k),), random, top=200)
    two = torch.tensor([0.3, 0.9])
    inf, nan = math.inf, math.nan
    odd = {
        "nan": torch.tensor([[1.0, nan, 2.0], [1.0, 2.0, 3.0]]),
        "nothing": torch.tensor([[-inf, -inf, -inf], [0.0, 0.0, 0.0]]),
        "infinite": torch.tensor([[-inf, 1.0, -inf], [0.0, -inf, 1.0]]),
    }
    for name, rows in odd.items():
        yield chain_case(name, rows, (chain.TopK(2), chain.MinP(0.1)), two)
        yield chain_case(f"{name}-greedy", rows, (chain.TopK(2),), two, temperature=0.0)
    one_hot = torch.full((2, 9), -inf)
    one_hot[:, 4] = 0.0
    yield chain_case("xtc-nobody-else", one_hot, (chain.Xtc(1.0, 0.0), chain.MinP(0.1)), two)
    flat = (chain.DynamicTemper(0.5, 0.5, 3e38), chain.DynamicTemper(0.0, 2.0, 3e38))
    yield chain_case("flat-dynamic-temper", torch.zeros(2, 97), flat, two)
    yield chain_case("no-rows", torch.zeros(0, 5), (chain.TopK(2),), two[:0])


def large_vocabulary_cases() -> Iterator[Case]:
    """Rows of more blocks than the kernel looks at first; few and many candidates left."""
    settings = [
        (1.0, 40, 0.95, 0.0),
        (1.0, 300, 1.0, 0.0),
        (1.0, 0, 0.9, 0.0),
        (1.0, 0, 1.0, 0.02),
        (0.4, 0, 1.0, 0.0),
        (0.0, 0, 1.0, 0.0),
    ]
    rows = torch.randn(len(settings), 5003) * 2
    rows[1] = rows[1].round()  # many of one size
    random = torch.rand(len(settings)) * 0.9 + 0.05
    t, k, p, m = (torch.tensor(column) for column in zip(*settings, strict=True))
    want = [plain_sample(rows[i], *settings[i], float(random[i])) for i in range(len(settings))]
    yield Case("sample", "v5003", (rows, t, k, p, m, random), torch.tensor(want))
    equal = torch.full((1, 700), 2.0)
    one = torch.ones(1)
    args = (equal, one, torch.tensor([0]), one * 0.5, one * 0, one * 0.999)
    yield Case("sample", "all-equal", args, torch.tensor([349]))
    infinite = torch.tensor([[1.0, math.inf, -math.inf, math.inf]])
    args = (infinite, one, torch.tensor([0]), one, one * 0, one * 0.6)
    yield Case("sample", "infinite", args, torch.tensor([3]))


def wide_cases() -> Iterator[Case]:
    """More candidates than a GPU's block sorts at once, and than one block of it takes; equal ones by the thousand."""
    draws = torch.tensor([0.21, 0.83])
    few: dict[str, chain.Step] = {
        "top-p-stream": chain.TopPStream(0.4),
        "tail-free": chain.TailFree(0.9),
        "typical": chain.Typical(0.5),
        "typical-below": chain.TypicalBelow(0.5),
    }
    for name, step in few.items():
        yield chain_case(f"{name}-v3001", torch.randn(2, 3001), (step,), draws)
    many: dict[str, tuple[chain.Step, ...]] = {
        "sort": (chain.Sort(),),
        "top-k": (chain.TopK(2500), chain.Sort()),
        "top-p": (chain.TopP(0.4),),
        "min-p": (chain.MinP(1e-3), chain.TopK(1500)),
        "xtc": (chain.Xtc(0.5, 0.002), chain.Surprise(9.0)),
        "temper": (chain.Temper(0.8), chain.DynamicTemper(0.5, 1.5)),
    }
    for name, steps in many.items():
        rows = torch.randn(2, 9002)[:, 1:] * 2
        allowed = torch.rand(2, 9001) < 0.9
        yield chain_case(f"{name}-v9001", rows, steps, draws, allowed=allowed)
    rows = torch.randint(-2, 3, (2, 9001)).float()
    yield chain_case("top-k-ties-v9001", rows, (chain.TopK(1200),), draws, top=1200)
    settings = [
        (0.8, 0, 1.0, 0.0),
        (1.0, 3000, 1.0, 0.0),
        (1.2, 0, 0.9, 0.0),
        (1.0, 1000, 0.7, 0.01),
        (0.7, 50, 1.0, 0.1),
    ]
    t, k, p, m = (torch.tensor(column) for column in zip(*settings, strict=True))
    for name, scale in (("normal", 2.0), ("coarse", 1.0), ("equal", 0.0)):
        rows = torch.randn(len(settings), 20012)[:, 1:] * scale  # not at a 16-byte boundary
        if name == "coarse":
            rows = rows.round()
        random = torch.rand(len(settings)) * 0.98 + 0.01
        want = [plain_sample(rows[i], *settings[i], float(random[i])) for i in range(len(settings))]
        yield Case("sample", f"{name}-v20011", (rows, t, k, p, m, random), torch.tensor(want))
    tokens = torch.randint(-1, 900, (2, 3000))  # up to 20 times each
    args = (
        torch.randn(2, 900),
        tokens,
        torch.tensor([1.3, 0.8]),
        torch.full((2,), 0.01),
        torch.full((2,), 0.2),
        700,
        1800,
    )
    rows = [
        plain_penalty(args[0][b], tokens[b].tolist(), *(float(v[b]) for v in args[2:5]), 700, 1800)
        for b in range(2)
    ]
    expected = torch.stack(rows)
    bound = (6 + 2 * 20) * F32 * (expected.abs() + args[0].double().abs() * 2 + 1)
    yield Case("repetition_penalty_", "l3000", args, expected, bound)


def plain_penalty(
    row: Tensor, tokens: Sequence[int], penalty: float, frequency: float, presence: float, sustain: int, decay: int
) -> Tensor:  # fmt: skip
    """A walk from the last token backwards."""
    y = row.double().clone()
    seen = set()
    S = len(tokens) if sustain < 0 else sustain
    for k, t in enumerate(reversed(tokens)):
        if k >= S + decay:
            break
        strength = 1 - (max(0, k - S) / decay if decay else 0)
        if t < 0:
            continue
        if t not in seen:
            seen.add(t)
            factor = 1 + strength * (penalty - 1)
            y[t] = y[t] / factor if y[t] > 0 else y[t] * factor
            y[t] -= strength * presence
        y[t] -= strength * frequency
    return y


def penalty_cases() -> Iterator[Case]:
    for sustain, decay in ((-1, 0), (0, 0), (3, 0), (0, 4), (2, 5), (9, 30), (50, 1), (-1, 7)):
        for L in (0, 1, 12):
            logits = torch.randn(6, 11)[::2] if L else torch.randn(3, 11)
            tokens = torch.randint(-1, 11, (3, L))
            penalty, frequency, presence = torch.tensor(
                [[1.2, 1.0, 0.7], [0.0, 0.3, -0.2], [0.5, 0.0, 0.25]]
            )
            args = (logits, tokens, penalty, frequency, presence, sustain, decay)
            rows = [
                plain_penalty(logits[b], tokens[b].tolist(), *(float(v[b]) for v in args[2:5]), sustain, decay)
                for b in range(3)
            ]  # fmt: skip
            expected = torch.stack(rows)
            bound = (6 + 2 * L) * F32 * (expected.abs() + logits.double().abs() * 2 + L)
            yield Case("repetition_penalty_", f"l{L}-s{sustain}-d{decay}", args, expected, bound)
