"""Each op beside the PyTorch expression of the same thing: what a program would write without the op."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from nybble import ops
from nybble.benchmarks.random_matrix import random_matrix
from nybble.ops.reference import IMPLEMENTATIONS
from nybble.ops.sample_steps import TopK, TopP

# A model of about a billion parameters.
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, HELD, VOCABULARY = 2048, 32, 8, 64, 512, 32000
PAGE = 256  # tokens

Call = Callable[[], object]
Pair = tuple[str, Call, Call]


def pairs(
    M: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Pair]:
    """Name, our call and PyTorch's, with ``M`` tokens (of one sequence) or rows of ``dtype``, where an op leaves a choice."""
    with torch.device(device):
        return list(_pairs(M, dtype))


def _pairs(M: int, dtype: torch.dtype) -> Iterator[Pair]:
    x, gate, up = torch.randn(3, M, HIDDEN, dtype=dtype).unbind()
    weight, bias = torch.randn(2, HIDDEN, dtype=dtype).unbind()
    yield (
        "rms_norm",
        lambda: ops.rms_norm(x, weight, 1e-5),
        lambda: F.rms_norm(x, (HIDDEN,), weight, 1e-5),
    )
    yield (
        "layer_norm",
        lambda: ops.layer_norm(x, weight, bias, 1e-5),
        lambda: F.layer_norm(x, (HIDDEN,), weight, bias, 1e-5),
    )
    yield "silu_mul", lambda: ops.silu_mul(gate, up), lambda: F.silu(gate) * up
    yield (
        "gelu_mul tanh",
        lambda: ops.gelu_mul(gate, up, tanh=True),
        lambda: F.gelu(gate, approximate="tanh") * up,
    )
    dense = torch.randn(HIDDEN, HIDDEN, dtype=dtype)
    yield "matmul", lambda: ops.matmul(x, dense), lambda: F.linear(x, dense)
    table, ids = torch.randn(VOCABULARY, HIDDEN).half(), torch.arange(M)[None]
    yield (
        "embedding",
        lambda: ops.embedding(ids, table, dtype),
        lambda: F.embedding(ids, table).to(dtype),
    )
    for family in (_rope, _attention, _int8, _rest):
        yield from family(M, dtype)
    for fixed in (_sampling, _caches, _quantizing):  # whose ops take one dtype only
        yield from fixed(M)


def _rope(M: int, dtype: torch.dtype) -> Iterator[Pair]:
    heads = torch.randn(1, M, HEADS, HEAD_DIM, dtype=dtype)
    angles = torch.rand(M, HEAD_DIM // 2)
    cos, sin, positions = angles.cos(), angles.sin(), torch.arange(M)[None]

    def plain() -> Tensor:
        a, b = heads.chunk(2, dim=-1)
        c, s = cos[positions][:, :, None], sin[positions][:, :, None]
        return torch.cat([a * c - b * s, b * c + a * s], dim=-1)

    yield "rope_", lambda: ops.rope_(heads, cos, sin, positions), plain


def _attention(M: int, dtype: torch.dtype) -> Iterator[Pair]:
    """``M`` new tokens after ``HELD``; keys and values lie head by head, as the cache keeps them."""
    S = HELD + M
    q = torch.randn(1, M, HEADS, HEAD_DIM, dtype=dtype)
    k, v = torch.randn(2, 1, KV_HEADS, S, HEAD_DIM, dtype=dtype).transpose(2, 3)
    lengths = torch.tensor([S])
    mask = torch.ones(M, S, dtype=torch.bool).tril(HELD)

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, enable_gqa=True
        )

    yield "attention", lambda: ops.attention(q, k, v, lengths), plain

    keys, values = (x.transpose(1, 2).contiguous() for x in (k, v))
    qkv = torch.randn(1, M, (HEADS + 2 * KV_HEADS) * HEAD_DIM, dtype=dtype)
    angles = torch.rand(S, HEAD_DIM // 2)
    rope = angles.cos(), angles.sin(), torch.arange(HELD, S)[None]
    yield (
        "cached_attention_",
        lambda: ops.cached_attention_(qkv, rope, (keys, values, lengths)),
        _plainly("cached_attention_", qkv, *rope, True, keys, values, lengths, HEAD_DIM**-0.5, 0),
    )
    one, rows = (
        torch.randn(M, *rest, HEAD_DIM, dtype=dtype) for rest in ((HEADS,), (KV_HEADS, 64))
    )
    run = 16 // dtype.itemsize
    chunks = torch.randn(M, KV_HEADS, HEAD_DIM // run, 64, run, dtype=dtype)
    held = torch.full((M,), 64)
    yield (
        "decode_attention",
        lambda: ops.decode_attention(one, chunks, rows, held),
        _plainly("decode_attention", one, chunks, rows, held, None, HEAD_DIM**-0.5),
    )
    pages = -(-S // PAGE)
    paged = torch.randn(2, pages, PAGE, KV_HEADS, HEAD_DIM, dtype=dtype).unbind()
    table = torch.arange(pages - 1, -1, -1, dtype=torch.int32)[None]
    arguments = (q, *paged, None, None, table, lengths, None, HEAD_DIM**-0.5, 0, 0.0)
    yield (
        "paged_attention",
        lambda: ops.paged_attention(q, paged[0], paged[1], table, lengths),
        _plainly("paged_attention", *arguments),
    )


def _sampling(M: int) -> Iterator[Pair]:
    logits = torch.randn(M, VOCABULARY) * 3
    one, random = torch.ones(M), torch.rand(M)
    top_k, top_p, min_p = torch.full((M,), 40), one * 0.95, one * 0
    tokens = torch.randint(0, VOCABULARY, (M, HELD))

    def sample() -> Tensor:
        best = logits.softmax(-1).topk(40)
        mass = best.values.cumsum(-1)
        kept = best.values * (mass - best.values < 0.95)
        return best.indices.gather(-1, torch.multinomial(kept, 1))

    def penalize() -> Tensor:
        seen = logits.gather(-1, tokens)
        return logits.scatter_(-1, tokens, torch.where(seen < 0, seen * 1.0, seen / 1.0))

    yield "sample", lambda: ops.sample(logits, one, top_k, top_p, min_p, random), sample
    steps = [TopK(40), TopP(0.95)]
    yield "sample_chain", lambda: ops.sample_chain(logits, 1.0, steps, random), sample
    yield (
        "repetition_penalty_",
        lambda: ops.repetition_penalty_(logits, tokens, one),
        penalize,
    )


def _plainly(name: str, *arguments: object) -> Call:
    """The reference, which is the op's meaning in PyTorch."""
    return lambda: IMPLEMENTATIONS[name](*arguments)


def _caches(M: int) -> Iterator[Pair]:
    """``M`` tokens of keys, 4 bits and float8."""
    x = torch.randn(1, M, KV_HEADS, HEAD_DIM).half()
    runs = torch.tensor([[0, M]])
    codes = torch.zeros(1, M, KV_HEADS, HEAD_DIM // 2, dtype=torch.uint8)
    scales = torch.zeros(1, M, KV_HEADS, HEAD_DIM // 32).half()
    bytes_ = torch.zeros(1, M, KV_HEADS, HEAD_DIM, dtype=torch.uint8)
    yield (
        "kv_quantize_ 4",
        lambda: ops.kv_quantize_(codes, scales, x, runs, bits=4),
        _plainly("kv_quantize_", codes, scales, x, runs, 4),
    )
    yield (
        "kv_dequantize_ 4",
        lambda: ops.kv_dequantize_(x, codes, scales, runs, bits=4),
        _plainly("kv_dequantize_", x, codes, scales, runs, 4),
    )
    yield "fp8_encode_", lambda: ops.fp8_encode_(bytes_, x), _plainly("fp8_encode_", bytes_, x)
    yield "fp8_decode_", lambda: ops.fp8_decode_(x, bytes_), _plainly("fp8_decode_", x, bytes_)


def _int8(M: int, dtype: torch.dtype) -> Iterator[Pair]:
    x, weight = torch.randn(M, HIDDEN, dtype=dtype), torch.randint(-127, 128, (HIDDEN, HIDDEN))
    weight = weight.to(torch.int8)
    codes, scale = ops.quantize_int8(x)
    w_scale, norm, bias = torch.rand(HIDDEN), torch.randn(HIDDEN), torch.randn(HIDDEN)

    def product() -> Tensor:
        return (torch._int_mm(codes, weight.T).float() * (scale[:, None] * w_scale)).to(dtype)

    yield "quantize_int8", lambda: ops.quantize_int8(x), _plainly("quantize_int8", x)
    yield (
        "layer_norm_int8",
        lambda: ops.layer_norm_int8(x, norm, bias, 1e-5),
        _plainly("layer_norm_int8", x, norm, bias, 1e-5),
    )
    yield (
        "int8_matmul",
        lambda: ops.int8_matmul(codes, scale, weight, w_scale, dtype=dtype),
        product,
    )


def _quantizing(M: int) -> Iterator[Pair]:
    """``M`` rows of a matrix that is being quantized to 4 bits."""
    x, scales = torch.randn(M, HIDDEN), torch.rand(HIDDEN) + 0.1
    factors, eye = torch.linspace(0.5, 1.0, 8), torch.eye(M)
    codes, error = torch.zeros(M, HIDDEN, dtype=torch.uint8), torch.zeros(M, HIDDEN)
    yield (
        "quantize_columns",
        lambda: ops.quantize_columns(x, scales, zero=8, max_code=15),
        _plainly("quantize_columns", x, scales, 8, 15),
    )
    yield (
        "quantize_error",
        lambda: ops.quantize_error(x, scales, factors, zero=8, max_code=15, norm=2.0),
        _plainly("quantize_error", x, scales, factors, 8, 15, 2.0),
    )
    yield (
        "gptq_group_",
        lambda: ops.gptq_group_(x, codes, error, eye, scales, zero=8, max_code=15),
        _plainly("gptq_group_", x, codes, error, eye, scales, 8, 15),
    )
    cost, loss = torch.arange(4).repeat(M), torch.rand(4 * M).double()
    first, heat = torch.arange(0, 4 * M + 1, 4), torch.linspace(1, 0.1, 4).double()
    yield (
        "anneal_knapsack",
        lambda: ops.anneal_knapsack(cost, loss, first, 2 * M, heat, steps=100, seed=1),
        _plainly("anneal_knapsack", cost, loss, first, 2 * M, heat, 100, 1),
    )


def _rest(M: int, dtype: torch.dtype) -> Iterator[Pair]:
    x, logits = torch.randn(M, HIDDEN, dtype=dtype), torch.randn(M, 64, dtype=dtype)
    # Of ones in place: a weight applied again and again would end in subnormal numbers.
    y, ones = x.clone(), torch.ones(HIDDEN, dtype=dtype)

    def route() -> object:
        best = logits.softmax(-1, dtype=torch.float32).topk(4)
        return best.values / best.values.sum(-1, keepdim=True), best.indices

    yield (
        "rms_norm_",
        lambda: ops.rms_norm_(y, ones, 1e-5),
        lambda: y.copy_(F.rms_norm(y, (HIDDEN,), ones, 1e-5)),
    )
    yield (
        "layer_norm_",
        lambda: ops.layer_norm_(y, ones, None, 1e-5),
        lambda: y.copy_(F.layer_norm(y, (HIDDEN,), ones, None, 1e-5)),
    )
    yield "softcap_", lambda: ops.softcap_(x, 30.0), lambda: x.div_(30.0).tanh_().mul_(30.0)
    yield "moe_route", lambda: ops.moe_route(logits, 4), route
    matrix = random_matrix(HIDDEN, 16 * M, 4, 128, x.device)
    arguments = (matrix.weight, matrix.scales, None, None, matrix.blocks, HIDDEN, 16 * M)
    yield (
        "dequantize",
        lambda: ops.dequantize(matrix, torch.float16),
        _plainly("dequantize", *arguments, torch.float16),
    )
