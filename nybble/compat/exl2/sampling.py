"""The sampling functions of ``exllamav2_ext``, and two that do nothing."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence
from ctypes import c_float
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args
from nybble.ops.sample_chain import Choice
from nybble.ops.sample_steps import (
    DynamicTemper,
    MinP,
    Sort,
    Step,
    Surprise,
    TailFree,
    Temper,
    TopA,
    TopK,
    TopPStream,
    TypicalBelow,
    Xtc,
)


def apply_rep_penalty(
    sequence: Any,
    penalty_max: Any,
    sustain: Any,
    decay: Any,
    alpha_frequency: Any,
    alpha_presence: Any,
    logits: Any,
    /,
) -> None:
    """:func:`nybble.ops.repetition_penalty_` with one setting for all rows; ids outside ``[0, V)`` count as no token."""
    tokens = _args.dtype("sequence", sequence, "kLong")
    rows = _rows(logits)
    if tokens.dim() != 2 or tokens.shape[0] != rows.shape[0]:
        raise RuntimeError("sequence and logits have incompatible shapes")
    one = torch.ones(rows.shape[0])
    ops.repetition_penalty_(
        rows,
        tokens.where((tokens >= 0) & (tokens < rows.shape[1]), -1),
        one * _args.number("penalty_max", penalty_max),
        one * _args.number("alpha_frequency", alpha_frequency),
        one * _args.number("alpha_presence", alpha_presence),
        sustain=_args.integer("sustain", sustain),
        decay=_args.integer("decay", decay),
    )


def logit_filter_exclusive(filter: Any, exclusive_lists: Any, /) -> None:
    """In row i of ``filter`` ``[B, V]`` every id that is not in list i becomes False; in place."""
    mask = _args.dtype("filter", filter, "kBool")
    if mask.dim() != 2:
        raise RuntimeError("filter has incompatible shape, expected (batch, vocabulary)")
    if mask.shape[0] != len(exclusive_lists):
        raise RuntimeError("Number of lists does not match batch size")
    listed = torch.zeros_like(mask)
    for row, allowed in zip(listed, exclusive_lists, strict=True):
        if len(allowed) == 0:
            raise IndexError("a list of allowed tokens is empty")
        ids = torch.frombuffer(array("q", allowed), dtype=torch.int64)
        row[ids[(ids >= 0) & (ids < mask.shape[1])]] = True
    mask &= listed


def fast_fill_cpu_ones_bool(tensor: Any, /) -> None:
    """Every element becomes True."""
    _args.dtype("tensor", tensor, "kBool").fill_(True)


def fast_fadd_cpu(a: Any, b: Any, /) -> None:
    """``a.view(-1, b.numel()) += b``."""
    total = _args.contiguous("a", _args.dtype("a", a, "kFloat"))
    part = _args.dtype("b", b, "kFloat")
    if part.numel() == 0 or total.numel() % part.numel():
        raise RuntimeError("a and b are incompatible sizes")
    total.view(-1, part.numel()).add_(part.reshape(-1))


def fast_copy_cpu(dst: Any, src: Any, /) -> None:
    """``dst.copy_(src)`` between tensors of one shape and dtype, with any strides."""
    to, origin = _args.tensor("dst", dst), _args.tensor("src", src)
    if to.shape != origin.shape:
        raise RuntimeError("Tensors must have the same shape")
    if to.dtype != origin.dtype:
        raise RuntimeError("Tensors must have the same dtype")
    if to.is_meta or origin.is_meta:
        raise RuntimeError("a tensor is on the meta device, but it may not be absent")
    to.copy_(origin)


def dump_profile_results() -> None:
    """Nothing: no build of this records times."""


def set_flash_attn_func() -> None:
    """Nothing, as before."""


def partial_strings_match(match: Any, offsets: Any, strings: Any, /) -> int:
    """Where the first string that ``match`` contains or may go on to contain starts in it; -2: it may; -1: none does.

    The strings are tried in order, so that one which may still come hides a later one which is there.
    ``match`` and ``strings`` hold UTF-32-LE, ``offsets`` int32 offsets in bytes of each string and of the end.
    """
    text = _text("match", _bytes("match", match))
    candidates = _bytes("strings", strings)
    places = array("i")
    raw = _bytes("offsets", offsets)
    places.frombytes(raw[: len(raw) // 4 * 4])
    for begin, end in itertools.pairwise(places):
        if not 0 <= begin < end <= len(candidates) or begin % 4 or end % 4:
            raise RuntimeError("offsets do not cut strings into pieces of whole characters")
        wanted = _text("strings", candidates[begin:end])
        at = text.find(wanted)
        if at >= 0:
            return at
        begun = range(max(0, len(text) - len(wanted) + 1), len(text))
        if any(wanted.startswith(text[start:]) for start in begun):
            return -2
    return -1


def sample_basic(*arguments: Any) -> list[float]:
    """One token a row through :func:`nybble.ops.sample_chain`, in the old order of steps.

    The 27 arguments are the fields of :class:`SampleBasic`. Writes the outputs and returns the new ``mirostat_mu``.
    """
    call = SampleBasic(*arguments)
    rows = _rows(call.logits)
    B, V = rows.shape
    allowed = _mask("logit_filter", call.logit_filter, (B, V))
    token = _output("output_tokens", call.output_tokens, "kLong", B)
    probability = _output("output_probs", call.output_probs, "kFloat", B)
    k_tokens, k_probabilities = _reports(call.output_ktokens, call.output_kprobs, B)
    mu = call.mu(B)
    choice = ops.sample_chain(
        call.smoothed(rows, allowed),
        call.heat(),
        call.steps(mu, ordered=k_tokens.shape[1] > 0),
        torch.tensor(call.points(B), dtype=torch.float32),
        allowed=allowed,
        removable=_mask("xtc_mask", call.xtc_mask, (V,)),
        top=k_tokens.shape[1],
    )
    if B > 0 and int(choice.token.min()) < 0:
        raise RuntimeError("logits have a row with no token to choose: NaN, or nothing allowed")
    token.copy_(choice.token)
    probability.copy_(choice.probability)
    if k_tokens.shape[1] > 0:
        k_tokens.copy_(_filled(choice))
        k_probabilities.copy_(choice.top_probabilities)
    return call.moved(mu, probability.tolist())


@dataclass(frozen=True)
class SampleBasic:
    """The arguments of :func:`sample_basic`, in its order."""

    logits: Any  # float32 (B, 1, V)
    temperature: Any  # under 0.01: greedy
    top_k: Any  # 0: off
    top_p: Any  # these work between 0 and 1; top_a above 0
    top_a: Any
    min_p: Any
    tfs: Any
    typical: Any
    random: Any  # in [0, 1)
    output_tokens: Any  # int64 (B, 1)
    output_probs: Any  # float32 (B, 1)
    output_kprobs: Any  # absent, or float32 (B, 1, K)
    output_ktokens: Any  # absent, or int64 (B, 1, K)
    logit_filter: Any  # absent, or bool (B, V)
    mirostat: Any  # bool
    mirostat_mu: Any  # a number a row, 0: not begun
    mirostat_tau: Any
    mirostat_eta: Any
    post_temperature: Any  # 1: off
    xtc_mask: Any  # absent, or bool (V)
    xtc_probability: Any  # 0: off
    xtc_threshold: Any
    min_temp: Any  # dynamic temperature works where it is below max_temp
    max_temp: Any
    temp_exponent: Any
    smoothing_factor: Any  # 0: off
    skew: Any  # 0: off

    def number(self, name: str) -> float:
        """A field as a float32 number."""
        return _args.number(name, getattr(self, name))

    def heat(self) -> float:
        """Temperature of the softmax, 0: greedy."""
        heat = self.number("temperature")
        return 0.0 if heat < 0.01 else heat

    def smoothed(self, rows: Tensor, allowed: Tensor | None) -> Tensor:
        """``-factor * (logit - largest)**2``, or the logits themselves."""
        factor = self.number("smoothing_factor")
        if factor <= 0:
            return rows
        seen = rows if allowed is None else rows.masked_fill(~allowed, -math.inf)
        return (rows - seen.amax(-1, keepdim=True)).square() * -factor

    def mu(self, B: int) -> list[float]:
        """The list that came in; with Mirostat on, rows that have not begun are at twice ``tau``."""
        mu = [_args.number("mirostat_mu", value) for value in self.mirostat_mu]
        tau = self.number("mirostat_tau")
        if not _args.boolean("mirostat", self.mirostat):
            return mu
        if len(mu) != B:
            raise RuntimeError("mirostat_mu does not have one value for each row")
        return [2 * tau if value == 0 else value for value in mu]

    def moved(self, mu: list[float], probabilities: list[float]) -> list[float]:
        """``mu`` after tokens of these probabilities."""
        eta, tau = self.number("mirostat_eta"), self.number("mirostat_tau")
        if not self.mirostat:
            return mu
        return [m - eta * (-math.log2(p) - tau) for m, p in zip(mu, probabilities, strict=True)]

    def steps(self, mu: list[float], *, ordered: bool) -> list[Step]:
        """The chain; ``ordered``: its end must be sorted."""
        k = _args.integer("top_k", self.top_k)
        between = {"top_p": TopPStream, "min_p": MinP, "tfs": TailFree, "typical": TypicalBelow}
        on = {
            name: step(self.number(name))
            for name, step in between.items()
            if 0 < self.number(name) < 1
        }
        if self.number("top_a") > 0:
            on["top_a"] = TopA(self.number("top_a"))
        steps: list[Step] = [TopK(float(k))] if k > 0 else []
        steps += [on[name] for name in ("top_p", "top_a", "min_p", "tfs", "typical") if name in on]
        if self.mirostat:  # a negative number of bits keeps the largest, as 0 does
            steps.append(Surprise(torch.tensor(mu).clamp(min=0)))
        low, high = self.number("min_temp"), self.number("max_temp")
        exponent, late = self.number("temp_exponent"), self.number("post_temperature")
        if high > low:
            steps.append(DynamicTemper(low, high, exponent))
        elif late != 1:
            steps.append(Temper(late))
        chance, threshold = self.number("xtc_probability"), self.number("xtc_threshold")
        if chance > 0:
            _args.dtype("xtc_mask", self.xtc_mask, "kBool")
            steps.append(Xtc(chance, threshold))
        if ordered or self.number("skew") != 0:
            steps.append(Sort())
        return steps

    def points(self, B: int) -> list[float]:
        """Where in the mass each row's token lies; a little short of its end, which rounding may have moved."""
        power = math.exp(-self.number("skew"))
        return [u**power * 0.9998 for u in _draws(self.number("random"), B)]


def _rows(logits: Any) -> Tensor:
    """``(B, ..., V)`` with one row a batch element, as ``(B, V)``."""
    given = _args.contiguous("logits", _args.dtype("logits", logits, "kFloat"))
    if given.dim() < 2 or given.numel() != given.shape[0] * given.shape[-1]:
        raise RuntimeError("logits have incompatible shape, expected (batch, 1, vocabulary)")
    return given.view(given.shape[0], given.shape[-1])


def _mask(name: str, value: Any, shape: tuple[int, ...]) -> Tensor | None:
    if _args.optional(name, value) is None:
        return None
    given = _args.dtype(name, value, "kBool")
    if tuple(given.shape) != shape:
        raise RuntimeError(f"logits and {name} have incompatible shapes")
    return given


def _output(name: str, value: Any, word: str, B: int) -> Tensor:
    given = _args.contiguous(name, _args.dtype(name, value, word))
    if given.numel() != B:
        raise RuntimeError(f"logits and {name} have incompatible shapes")
    return given.view(B)


def _reports(tokens: Any, probabilities: Any, B: int) -> tuple[Tensor, Tensor]:
    """Both as ``(B, K)``; K = 0 where they are absent."""
    if _args.optional("output_kprobs", probabilities) is None:
        return torch.empty(B, 0, dtype=torch.int64), torch.empty(B, 0)
    p = _args.contiguous("output_kprobs", _args.dtype("output_kprobs", probabilities, "kFloat"))
    t = _args.contiguous("output_ktokens", _args.dtype("output_ktokens", tokens, "kLong"))
    if p.dim() != 3 or p.shape != t.shape or tuple(p.shape[:2]) != (B, 1):
        raise RuntimeError("output_kprobs and output_ktokens have incompatible shapes")
    return t.view(B, -1) if B else t[:, 0], p.view(B, -1) if B else p[:, 0]


def _draws(random: float, B: int) -> list[float]:
    """The random number of each row: the given one, then its scrambled successors, rounded as float32 is."""
    draws = [random]
    while len(draws) < B:
        r = last = draws[-1]
        for _ in range(10):
            r = c_float(r + (1.337 + last)).value
            r = c_float(r * r).value
            r -= math.floor(r)
        draws.append(r)
    return draws[:B]


def _filled(choice: Choice) -> Tensor:
    """Reported tokens, with the lowest ids not among them where there are fewer than asked for."""
    rows: list[list[int]] = choice.top_tokens.tolist()
    for row in rows:
        free = (i for i in range(2 * len(row)) if i not in row)
        row[:] = [next(free) if t < 0 else t for t in row]
    return torch.tensor(rows, dtype=torch.int64).view(choice.top_tokens.shape)


def _bytes(name: str, value: Any) -> bytes:
    view = memoryview(value)
    if view.itemsize != 1:
        raise RuntimeError(f"{name} has elements of {view.itemsize} bytes, expected bytes")
    return view.tobytes()


def _text(name: str, raw: Sequence[int] | bytes) -> str:
    try:
        return bytes(raw[: len(raw) // 4 * 4]).decode("utf-32-le", errors="surrogatepass")
    except UnicodeDecodeError as error:
        raise RuntimeError(f"{name} is not UTF-32: {error}") from error
