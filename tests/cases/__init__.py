"""One table of cases for every op: the arguments, and what a float64 calculation says the answer is.

Tests run the table on the native kernels, the references and, on a machine with one, the GPU. A case's tolerance follows from
the dtype's rounding unit, the number of terms added, and the size of what is added. One module a family of ops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from tests.cases import core, moe, norms
from tests.cases.base import Case

TABLE: list[Callable[[], Iterator[Case]]] = [
    core.qmatmul_cases,
    core.matmul_cases,
    core.norm_cases,
    core.rope_cases,
    core.attention_cases,
    core.gate_cases,
    core.embedding_cases,
    core.sample_cases,
    moe.route_cases,
    norms.norm_cases,
    norms.softcap_cases,
]


@functools.cache
def all_cases() -> list[Case]:
    """The whole table, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2026)
        return [case for cases in TABLE for case in cases()]
