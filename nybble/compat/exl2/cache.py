"""Key/value caches: float8, Q4, Q6 and Q8, flat and paged; matching prefixes and moving pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args

# Bits of keys and of values.
_BITS = {4: (4, 4), 6: (8, 4), 8: (8, 8)}
# The old kernels worked on blocks of this many elements; ranges are widened to whole ones as theirs were.
_BLOCK = 512
_GROUP = 64


def fp16_to_fp8(in_tensor: Any, out_tensor: Any, batch_size: Any, offset: Any, width: Any) -> None:
    """Half ``[bsz, seq, heads, dim]`` to float8 e5m2 bytes: tokens ``offset`` to ``offset + width - 1`` of some rows."""
    x = _cache("in_tensor", in_tensor, "kHalf")
    codes = _cache("out_tensor", out_tensor, "kUInt8")
    part = _fp8_part(x, codes, batch_size, offset, width)
    ops.fp8_encode_(codes.flatten(1)[part], x.flatten(1)[part])


def fp8_to_fp16(in_tensor: Any, out_tensor: Any, batch_size: Any, offset: Any, width: Any) -> None:
    """The opposite of :func:`fp16_to_fp8`."""
    codes = _cache("in_tensor", in_tensor, "kUInt8")
    x = _cache("out_tensor", out_tensor, "kHalf")
    part = _fp8_part(x, codes, batch_size, offset, width)
    ops.fp8_decode_(x.flatten(1)[part], codes.flatten(1)[part])


def fp16_to_q_kv(
    k_in: Any,
    k_out: Any,
    k_scales: Any,
    v_in: Any,
    v_out: Any,
    v_scales: Any,
    batch_size: Any,
    offset: Any,
    width: Any,
    page_size: Any,
    cache_seqlens: Any,
    block_table: Any,
    wbits: Any,
) -> None:
    """Quantize half keys and values ``[bsz, seq, kv_heads, head_dim]``.

    ``page_size`` 0: tokens ``offset`` to ``offset + width - 1`` of ``batch_size`` rows. Otherwise ``width`` tokens after the
    first ``cache_seqlens[b]`` of each sequence of ``block_table``.
    """
    stores = _stores(wbits, ("in", k_in, v_in), ("out", k_out, v_out), (k_scales, v_scales))
    tokens = _natural("width", width)
    page = _natural("page_size", page_size)
    if page == 0:
        runs = _flat_runs(stores[0], batch_size, offset, tokens)
    else:
        table, lengths = _paged(block_table, cache_seqlens)
        align = stores[0].align(_BLOCK)
        runs = ops.paged_runs(table, lengths, lengths + tokens, page_size=page, align=align)
    for s in stores:
        ops.kv_quantize_(s.codes, s.scales, s.x, runs, bits=s.bits)


def q_to_fp16_kv(
    k_in: Any,
    k_out: Any,
    k_scales: Any,
    v_in: Any,
    v_out: Any,
    v_scales: Any,
    batch_size: Any,
    offset: Any,
    width: Any,
    page_size: Any,
    cache_seqlens: Any,
    block_table: Any,
    wbits: Any,
) -> None:
    """The opposite of :func:`fp16_to_q_kv`; paged, the first ``cache_seqlens[b]`` tokens of each sequence."""
    stores = _stores(wbits, ("out", k_out, v_out), ("in", k_in, v_in), (k_scales, v_scales))
    tokens = _natural("width", width)
    page = _natural("page_size", page_size)
    if page == 0:
        runs = _flat_runs(stores[0], batch_size, offset, tokens)
    else:
        table, lengths = _paged(block_table, cache_seqlens)
        # Longer tokens stop where they are asked to: what lies behind may be new and not yet quantized.
        align = stores[0].align(_BLOCK if stores[0].token < _BLOCK else _GROUP)
        begin = torch.zeros_like(lengths)
        runs = ops.paged_runs(table, begin, lengths, page_size=page, align=align)
    for s in stores:
        ops.kv_dequantize_(s.x, s.codes, s.scales, runs, bits=s.bits)


def count_match(a: Any, b: Any, max_a: Any) -> int:
    """How many of the first ``max_a`` elements of ``a`` ``[1, n]`` are equal to those of ``b`` ``[1, m]`` from the start."""
    a, b = (
        _args.contiguous(name, _args.dtype(name, value, "kLong")).flatten()
        for name, value in (("a", a), ("b", b))
    )
    most = _natural("max_a", max_a)
    if most > a.numel():
        raise RuntimeError(f"max_a is {most}, but a has {a.numel()} elements")
    return ops.common_prefix(a[:most], b)


def cache_rotate(cache: Any, order: Any, temp: Any) -> None:
    """``cache[order[i]] = cache[order[i + 1]]``, and the last gets what the first had; ``temp`` is as large as a page."""
    pages = _args.contiguous("cache", _args.tensor("cache", cache))
    if pages.is_meta:
        raise RuntimeError("cache is on the meta device, but it may not be absent")
    if pages.dim() < 2:
        raise RuntimeError("cache argument must have dim >= 2")
    if _args.dtype("order", order, "kInt").dim() != 1:
        raise RuntimeError("order argument must have dim == 1")
    page = math.prod(pages.shape[1:]) * pages.element_size()
    if _args.tensor("temp", temp).numel() * temp.element_size() != page:
        raise RuntimeError("temp tensor incorrect size")
    ops.rotate_pages_(pages, order)


@dataclass(frozen=True)
class _Store:
    """Keys or values: as half numbers, and quantized."""

    x: Tensor  # float16 [bsz, seq, heads, dim]
    codes: Tensor  # uint8 [bsz, seq, heads, dim * bits / 8]
    scales: Tensor  # float16 [bsz, seq, heads, dim / 32]
    bits: int

    @property
    def token(self) -> int:
        """Elements of a token."""
        return self.x.shape[2] * self.x.shape[3]

    def align(self, block: int) -> int:
        """The fewest tokens that are whole blocks of elements."""
        return block // math.gcd(block, self.token)


def _stores(
    wbits: Any, halves: tuple[str, Any, Any], codes: tuple[str, Any, Any], scales: tuple[Any, Any]
) -> list[_Store]:
    """Keys and values, each checked; of halves and codes with the ending of their argument's name."""
    if _args.integer("wbits", wbits) not in _BITS:
        raise RuntimeError(f"wbits is {wbits}, expected 4, 6 or 8")
    stores = []
    for i, kind in enumerate("kv"):
        x_name, codes_name = f"{kind}_{halves[0]}", f"{kind}_{codes[0]}"
        s = _Store(
            _cache(x_name, halves[1 + i], "kHalf"),
            _cache(codes_name, codes[1 + i], "kUInt8"),
            _cache(f"{kind}_scales", scales[i], "kHalf"),
            _BITS[wbits][i],
        )
        *tokens, dim = s.x.shape
        _match(f"{x_name} and {codes_name}", [*s.codes.shape] == [*tokens, dim * s.bits // 8])
        _match(f"{x_name} and {kind}_scales", [*s.scales.shape] == [*tokens, dim // 32])
        stores.append(s)
    _match("keys and values", stores[0].x.shape == stores[1].x.shape)
    return stores


def _flat_runs(store: _Store, batch_size: Any, offset: Any, tokens: int) -> Tensor:
    """The same tokens of each of the first rows, widened to whole blocks."""
    rows, seq = store.x.shape[:2]
    batch, first = _natural("batch_size", batch_size), _natural("offset", offset)
    _inside(batch, rows, first + tokens, seq)
    if tokens == 0:
        return torch.empty(0, 2, dtype=torch.int64, device=store.x.device)
    align = store.align(_BLOCK)
    begin, end = first // align * align, min(-(-(first + tokens) // align) * align, seq)
    row = torch.arange(batch, device=store.x.device)[:, None] * seq
    return row + torch.tensor([begin, end], device=store.x.device)


def _paged(block_table: Any, cache_seqlens: Any) -> tuple[Tensor, Tensor]:
    table, lengths = (
        _args.contiguous(name, _args.dtype(name, value, "kInt"))
        for name, value in (("block_table", block_table), ("cache_seqlens", cache_seqlens))
    )
    _match(
        "cache_seqlens and block_table",
        table.dim() == 2 and lengths.dim() == 1 and table.shape[0] == lengths.shape[0],
    )
    return table, lengths.long()


def _fp8_part(
    x: Tensor, codes: Tensor, batch_size: Any, offset: Any, width: Any
) -> tuple[slice, slice]:
    """Rows, and the elements of a row that hold these tokens, widened to whole groups of 8."""
    _match("in_tensor and out_tensor", x.shape == codes.shape)
    batch, first, tokens = (
        _natural(name, value)
        for name, value in (("batch_size", batch_size), ("offset", offset), ("width", width))
    )
    _inside(batch, x.shape[0], first + tokens, x.shape[1])
    token = x.shape[2] * x.shape[3]
    begin = first * token // 8 * 8
    end = begin + -(-((first + tokens) * token - begin) // 8) * 8
    return slice(0, batch), slice(begin, end if tokens else begin)


def _cache(name: str, value: Any, word: str) -> Tensor:
    """A contiguous 4-D tensor."""
    given = _args.contiguous(name, _args.dtype(name, value, word))
    if given.dim() != 4:
        raise RuntimeError(f"{name} has shape {list(given.shape)}, expected 4 dimensions")
    return given


def _natural(name: str, value: Any) -> int:
    if not 0 <= _args.integer(name, value) < 1 << 31:
        raise RuntimeError(f"{name} is {value}, expected 0 or more and less than 2^31")
    return int(value)


def _inside(batch: int, rows: int, end: int, seq: int) -> None:
    if batch > rows or end > seq:
        raise RuntimeError(
            f"batch_size {batch} and tokens up to {end} reach beyond a cache of {rows} rows of {seq} tokens"
        )


def _match(names: str, good: bool) -> None:
    if not good:
        raise RuntimeError(f"{names} have incompatible shapes")
