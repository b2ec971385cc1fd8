"""Which rows of which matrix get how many bits, from the weights alone.

Matrices that read the same input (q, k, v; gate, up) form a *site*: they share one row order and
one list of widths, so that the runtime can multiply by them as one matrix. Rows go by falling sum of
squares, in blocks of 32: rows of like size share steps, and strong rows get more bits. Every block
starts at the narrowest width; then the block with the largest error saved per stored bit is widened,
again and again, until the budget is spent. Errors count relative to the site's weights, times their
number, so that no layer is starved for its units.

Weighting rows by the norm weights before them, as a stand-in for calibration, was tried on the demo
model and did not lower the KL divergence (0.0326 against 0.0321 nats at 4.0 bits), so it is not done.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nybble.errors import SettingError
from nybble.quantize.source import HEAD, Source

WIDTHS = (2, 3, 4, 5, 6, 8)
BLOCK = 32  # rows whose codes fill whole 32-bit words at every width
# Mean squared error of a unit normal weight at each width, 128 rows a group, as rtn.fit_group reaches it.
NOISE = {2: 0.1475, 3: 0.03855, 4: 0.01068, 5: 0.002851, 6: 0.0007315, 8: 0.00004738}


@dataclass
class Site:
    """Matrices that share an input, and so a row order and widths."""

    keys: tuple[str, ...]  # "model.layers.0.self_attn.q_proj", ...
    rows: int  # K
    columns: tuple[int, ...]  # N of each matrix, padded to 32
    power: Tensor  # float32 [K]: sum of squared weights of each row over all matrices
    widths: list[int] = field(default_factory=list)  # bits of each block of 32 packed rows, falling
    weight: float = 1.0  # what a relative error here costs, per matrix element
    fixed: int | None = None  # bits given from outside (the head), not counted in the target

    @property
    def order(self) -> Tensor:
        """int64 ``[K]``: input feature of each packed row, strongest first."""
        return torch.argsort(self.power, descending=True, stable=True)

    @property
    def numel(self) -> int:
        """Weights of the site."""
        return self.rows * sum(self.columns)

    def groups(self, group_size: int) -> list[tuple[int, int]]:
        """``(bits, rows)`` of each scale group: for each width the largest size up to ``group_size`` that divides its rows.

        >>> site = Site(("a",), 192, (32,), torch.ones(192), [5, 4, 4, 4, 4, 4])
        >>> site.groups(128)
        [(5, 32), (4, 32), (4, 32), (4, 32), (4, 32), (4, 32)]
        """
        out: list[tuple[int, int]] = []
        for bits in sorted(set(self.widths), reverse=True):
            blocks = self.widths.count(bits)
            size = next(s for s in (128, 64, 32) if s <= group_size and (blocks * BLOCK) % s == 0)
            out += [(bits, size)] * (blocks * BLOCK // size)
        return out

    def stored_bits(self, group_size: int) -> int:
        """Bits on disk of all tensors of the site: codes, scales, maxima, group table, row order."""
        groups = self.groups(group_size)
        codes = sum(bits * rows for bits, rows in groups)
        shared = len(groups) * (16 + 32) + self.rows * 32
        return sum(codes * n + len(groups) * 4 * n + shared for n in self.columns)


def assign_widths(sites: list[Site], target: float, group_size: int) -> float:
    """Fill ``widths`` of every site so that the stored bits a weight come to ``target``; returns what was reached.

    Raises:
        SettingError: ``target`` is below what the narrowest width stores, or above the widest.

    >>> site = Site(("a",), 256, (256,), torch.linspace(2, 1, 256))
    >>> round(assign_widths([site], 4.5, 128), 2) <= 4.5
    True
    """
    for site in sites:
        site.widths = [site.fixed or WIDTHS[0]] * (site.rows // BLOCK)
    free = [s for s in sites if s.fixed is None]
    numel = sum(s.numel for s in free)
    if not numel:
        return 0.0
    floor = _stored(free, group_size) / numel
    for site in free:
        site.widths = [WIDTHS[-1]] * len(site.widths)
    ceiling = _stored(free, group_size) / numel
    if not floor <= target <= ceiling:
        raise SettingError(
            f"--bits {target:g} cannot be reached: this model stores between {floor:.2f} and {ceiling:.2f} bits a weight; "
            "choose a target between them"
        )
    # Widening a block can change how its width divides into groups, so the scales' bits are only known afterwards: search
    # the code bits whose total, scales included, fits.
    low, high = 0.0, float(target)
    best = [[WIDTHS[0]] * (s.rows // BLOCK) for s in free]
    for _ in range(16):
        budget = (low + high) / 2
        _widen(free, int(budget * numel))
        if _stored(free, group_size) <= target * numel:
            low, best = budget, [list(s.widths) for s in free]
        else:
            high = budget
    for site, widths in zip(free, best, strict=True):
        site.widths = widths
    return _stored(free, group_size) / numel


def _stored(sites: list[Site], group_size: int) -> int:
    return sum(s.stored_bits(group_size) for s in sites)


def _widen(sites: list[Site], budget: int) -> None:
    """Start at the narrowest width and widen blocks by error saved per bit until ``budget`` code bits are spent."""
    heap: list[tuple[float, int, int, int]] = []
    costs = []
    spent = 0
    for i, site in enumerate(sites):
        order = site.order
        loss = site.power[order]
        share = loss.view(-1, BLOCK).sum(1) * (
            site.numel * site.weight / loss.sum().clamp_min(1e-30)
        )
        # Widths must fall with the rows; a block's cost never exceeds that of the one before it.
        costs.append(torch.cummin(share, 0).values.tolist())
        site.widths = [WIDTHS[0]] * len(costs[-1])
        spent += site.numel * WIDTHS[0]
        for block, cost in enumerate(costs[-1]):
            heap.append((_gain(cost, 0, site), i, block, 0))
    heapq.heapify(heap)
    while heap:
        _, i, block, step = heapq.heappop(heap)
        site = sites[i]
        bits = (WIDTHS[step + 1] - WIDTHS[step]) * BLOCK * sum(site.columns)
        if spent + bits > budget:
            continue
        if block and site.widths[block - 1] <= WIDTHS[step]:
            continue  # the wider block before it did not fit the budget either
        spent += bits
        site.widths[block] = WIDTHS[step + 1]
        if step + 2 < len(WIDTHS):
            heapq.heappush(heap, (_gain(costs[i][block], step + 1, site), i, block, step + 1))


def _gain(cost: float, step: int, site: Site) -> float:
    """Negative error saved per bit by going from ``WIDTHS[step]`` to the next (negative: the heap gives the smallest)."""
    saved = cost * (NOISE[WIDTHS[step]] - NOISE[WIDTHS[step + 1]])
    return -saved / ((WIDTHS[step + 1] - WIDTHS[step]) * BLOCK * sum(site.columns))


# Matrices that read the same input, and what a relative error in them costs beside one elsewhere: measured on the demo
# model as KL divergence with one kind of matrix at 3 bits (k and v 0.0056 and 0.0120 a million weights, others 0.002-0.004).
_SITES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), 1.5),
    (("self_attn.qkv_proj",), 1.5),
    (("mlp.gate_proj", "mlp.up_proj"), 1.0),
)


def find_sites(source: Source, head_bits: int) -> list[Site]:
    """Group the matrices of ``source`` into sites, in file order; ``lm_head`` gets ``head_bits``."""
    sites = []
    left = dict.fromkeys(source.keys)
    while left:
        keys, weight = _site_of(next(iter(left)), left)
        power, columns = torch.zeros(()), []
        for key in keys:
            del left[key]
            matrix = source.weight(key)
            power = power + matrix.square().sum(0)
            columns.append(-(-matrix.shape[0] // 32) * 32)
        fixed = head_bits if keys == (HEAD,) else None
        sites.append(Site(keys, power.numel(), tuple(columns), power, weight=weight, fixed=fixed))
    return sites


def _site_of(first: str, keys: dict[str, None]) -> tuple[tuple[str, ...], float]:
    """The keys that read what ``first`` reads, and the cost of their errors."""
    for names, weight in _SITES:
        for name in names:
            if first.endswith("." + name):
                layer = first[: -len(name)]
                return tuple(layer + n for n in names if layer + n in keys), weight
    return (first,), 1.0
