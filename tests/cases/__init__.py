"""One table of cases for every op: the arguments, and what a float64 calculation says the answer is.

Tests run the table on the native kernels, the references and, on a machine with one, the GPU. A case's tolerance follows from
the dtype's rounding unit, the number of terms added, and the size of what is added. One module a family of ops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from tests.cases import (
    core,
    decode_attention,
    int8,
    kv,
    matrix,
    moe,
    norms,
    paged_attention,
    qmatmul,
    quantize,
    sampling,
)
from tests.cases.base import Case

TABLE: list[Callable[[], Iterator[Case]]] = [
    qmatmul.qmatmul_cases,
    qmatmul.half_qmatmul_cases,
    qmatmul.few_rows_qmatmul_cases,
    qmatmul.narrow_qmatmul_cases,
    qmatmul.mixture_qmatmul_cases,
    qmatmul.many_rows_qmatmul_cases,
    qmatmul.fused_qmatmul_cases,
    core.cached_attention_cases,
    core.matmul_cases,
    core.norm_cases,
    core.rope_cases,
    core.attention_cases,
    core.gate_cases,
    core.embedding_cases,
    core.sample_cases,
    quantize.quantize_columns_cases,
    quantize.quantize_error_cases,
    quantize.gptq_group_cases,
    quantize.anneal_knapsack_cases,
    moe.route_cases,
    norms.norm_cases,
    norms.softcap_cases,
    kv.kv_cases,
    kv.fp8_cases,
    int8.quantize_cases,
    int8.layer_norm_cases,
    int8.matmul_cases,
    decode_attention.decode_attention_cases,
    paged_attention.paged_attention_cases,
    sampling.chain_cases,
    sampling.penalty_cases,
    sampling.large_vocabulary_cases,
    matrix.dequantize_cases,
    sampling.wide_cases,
]


@functools.cache
def all_cases() -> list[Case]:
    """The whole table, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2026)
        return [case for cases in TABLE for case in cases()]
