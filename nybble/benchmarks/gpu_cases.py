"""Which products are timed on a GPU, and what they should take: data, measured against in ``gpu_matmul``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nybble.benchmarks.random_matrix import Segment

SMALL = ((4096, 4096), (4096, 14336))
LARGE = ((8192, 28672), (28672, 8192))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
WIDTHS = (2, 3, 5, 6, 8)
GROUP = 128


@dataclass(frozen=True)
class Weight:
    """A matrix ``[K, N]`` as its packed rows are."""

    name: str
    K: int
    N: int
    segments: tuple[Segment, ...]
    permuted: bool = False
    zeros: bool = False

    def share(self, bits: int) -> float:
        """The part of its rows that have ``bits``."""
        return sum(s.rows for s in self.segments if s.bits == bits) / self.K


@dataclass(frozen=True)
class Target:
    """Seconds a product may take: so many, or ``factor`` times another measured in the same run."""

    microseconds: float = 0.0
    factor: float = 0.0
    of: str = ""  # "cublas": fp16 by cuBLAS; "parts": each width alone, by its share of the rows

    def seconds(self, measured: Mapping[str, float | None]) -> float | None:
        """None where what it is a multiple of was not measured.

        >>> Target(4.0).seconds({}), Target(factor=1.5, of="cublas").seconds({"cublas": 2.0})
        (4e-06, 3.0)
        """
        if not self.of:
            return self.microseconds / 1e6
        other = measured.get(self.of)
        return None if other is None else self.factor * other


def uniform(bits: int, K: int, N: int) -> Weight:
    """One width, a scale for each ``GROUP`` rows."""
    return Weight(f"{bits} bits", K, N, (Segment(bits, K, GROUP),))


def mixture(K: int, parts: tuple[tuple[int, float, int], ...]) -> tuple[Segment, ...]:
    """Segments of ``(bits, share, group)`` as EXL2's converter cuts them: whole groups, the last part takes the rest.

    >>> mixture(1536, ((8, 0.05, 32), (4, 0.1, 32), (3, 0.85, 32)))
    (Segment(bits=8, rows=96, group=32), Segment(bits=4, rows=160, group=32), Segment(bits=3, rows=1280, group=32))
    """
    segments: list[Segment] = []
    left = K
    for bits, share, group in parts[:-1]:
        rows = -int(-K * share // group) * group
        segments.append(Segment(bits, rows, group))
        left -= rows
    bits, _, group = parts[-1]
    return (*segments, Segment(bits, left, group))


# What a Llama checkpoint of about 3.0 bits a weight has in most layers: its gate projection, and its down projection.
GATE = ((4, 0.1, 128), (3, 0.9, 128))
DOWN = ((8, 0.05, 32), (4, 0.1, 128), (3, 0.85, 128))
MIXTURES = ((*LARGE[0], GATE), (*LARGE[1], DOWN))


def weights() -> list[Weight]:
    """Every matrix, those first that others are compared with."""
    found = [uniform(4, K, N) for K, N in (*SMALL, *LARGE)]
    found += [uniform(bits, K, N) for K, N in LARGE for bits in WIDTHS]
    for K, N, parts in MIXTURES:
        segments = mixture(K, parts)
        found.append(Weight("mixture", K, N, segments))
        found.append(Weight("mixture, permuted", K, N, segments, permuted=True))
    for K, N in LARGE:
        whole = (Segment(4, K, GROUP),)
        found.append(Weight("4 bits, permuted", K, N, whole, permuted=True))
        found.append(Weight("4 bits, zeros", K, N, whole, zeros=True))
    return found


def rows_of(weight: Weight) -> tuple[int, ...]:
    """The numbers of rows it is multiplied with."""
    return ROWS if weight.name == "4 bits" else (1,)


def _targets() -> dict[tuple[str, int, int, int], Target]:
    found = {
        ("4 bits", 4096, 4096, 1): Target(4.2),
        ("4 bits", 4096, 14336, 1): Target(10.0),
    }
    by_rows = {1: 33, 2: 34, 4: 35, 8: 37, 16: 40, 32: 46, 64: 60, 128: 105, 256: 195}
    for K, N in LARGE:
        found |= {("4 bits", K, N, M): Target(us) for M, us in by_rows.items()}
        found |= {("4 bits", K, N, M): Target(factor=1.1, of="cublas") for M in (1024, 4096)}
        for name in ("mixture", "mixture, permuted", "4 bits, permuted"):
            found[name, K, N, 1] = Target(factor=1.1, of="parts")
    for bits, us in zip(WIDTHS, (19, 26, 42, 49, 65), strict=True):
        K, N = LARGE[0]
        found[f"{bits} bits", K, N, 1] = Target(us)
    return found


TARGETS = _targets()  # by name, K, N and M, on an H200


def target(weight: Weight, M: int) -> Target | None:
    """What ``M`` rows times ``weight`` should take; None: it is only shown.

    >>> target(uniform(4, 4096, 4096), 1)
    Target(microseconds=4.2, factor=0.0, of='')
    """
    return TARGETS.get((weight.name, weight.K, weight.N, M))


MANY_TOKENS = 128 << 10  # batch times context from which narrow caches must win
NARROW = {"fp8": 1.7, "q8": 1.7, "q4": 2.6}  # times the speed of cuDNN on fp16


def attention_target(batch: int, held: int, storage: str, cudnn: float | None) -> float | None:
    """Seconds decode attention may take over ``held`` tokens a sequence; ``cudnn``: unpaged fp16 in the same run.

    >>> attention_target(1, 4096, "plain", 12e-6), attention_target(64, 4096, "q4", 2.6)
    (8e-06, 1.0)
    """
    if storage == "plain" and (batch, held) == (1, 4096):
        return 8e-6
    if cudnn is None:
        return None
    if storage == "plain":
        return 1.05 * cudnn
    if storage in NARROW and batch * held >= MANY_TOKENS:
        return cudnn / NARROW[storage]
    return None
