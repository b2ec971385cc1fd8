"""Every argument of the old block functions replaced by what does not fit: an exception, or one of the meanings listed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.compat import _handles
from nybble.compat import exllamav2_ext as ext
from tests.compat.making import (
    ABSENT,
    attention_arguments,
    half,
    handle,
    matrix,
    mlp_arguments,
    moe_arguments,
    packed,
    tables,
)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def attention() -> int:
    return ext.make_q_attn(*attention_arguments())


def mlp() -> int:
    return ext.make_q_mlp(*mlp_arguments())


def context() -> int:
    return ext.make_tp_context(*context_arguments())


def context_arguments() -> list[Any]:
    parts = [(0, 0, 1), (1, 1, 2)]
    return [parts, parts, parts, parts, parts, [half(1024), half(1024)], [0, 0]]


def matrices(K: int, N: int) -> list[int]:
    return [handle(packed(K, N)) for _ in range(2)]


def tp_attention() -> list[Any]:
    """Two shards of a head each, hidden states of 32 columns."""
    temps = [[ABSENT]] * 7
    cache = [half(3, 8, 1, 32), half(3, 8, 1, 32)]
    sin, cos = tables(20, 32)
    return [
        context(), half(4, 32), *temps, cache, [t.clone() for t in cache], [half(32), half(32)], 1e-5,
        matrices(32, 32), matrices(32, 32), matrices(32, 32), matrices(64, 16), 32, 2, 2, 2,
        [sin, sin], [cos, cos], [ints(0, 5)] * 2, [torch.zeros(2, 2, dtype=torch.int32)] * 2, 1.0,
    ]  # fmt: skip


def tp_attention_without_pages() -> list[Any]:
    arguments = tp_attention()
    del arguments[-2]
    return arguments


def sound() -> dict[str, Callable[[], list[Any]]]:
    """Arguments each function accepts."""
    pair = {3: half(64, 4)}, {3: half(4, 64)}
    return {
        "make_q_attn": attention_arguments,
        "free_q_attn": lambda: [attention()],
        "q_attn_forward_1": lambda: [
            attention(), half(2, 3, 64), 2, 3, 4, ints(1, 2), half(6, 128), half(6, 64), half(6, 64),
            *tables(20, 32), [3], ABSENT,
        ],
        "q_attn_forward_2": lambda: [attention(), half(6, 64), half(6, 128), 2, 3, [3], ABSENT],
        "q_attn_set_loras": lambda: [
            attention(), {3: half(64, 4)}, {3: half(4, 128)}, *pair, *pair, {3: half(128, 4)}, {3: half(4, 64)},
        ],
        "make_q_mlp": mlp_arguments,
        "free_q_mlp": lambda: [mlp()],
        "q_mlp_forward_": lambda: [mlp(), half(2, 3, 64), [3], ABSENT],
        "q_mlp_set_loras": lambda: [
            mlp(), *[{3: half(64, 4)}, {3: half(4, 96)}] * 2, {3: half(96, 4)}, {3: half(4, 64)},
        ],
        "make_q_moe_mlp": moe_arguments,
        "free_q_moe_mlp": lambda: [ext.make_q_moe_mlp(*moe_arguments())],
        "q_moe_mlp_forward_": lambda: [ext.make_q_moe_mlp(*moe_arguments()), half(3, 32)],
        "make_tp_context": context_arguments,
        "free_tp_context": lambda: [context()],
        "tp_broadcast": lambda: [context(), 0, half(2, 3), 0, [half(2, 3), half(9)], 1, -1],
        "tp_gather": lambda: [
            context(), 0, [half(3, 8), half(3, 8)], 0, [half(3, 16), half(3, 16)], 1, 8, -1,
        ],
        "tp_cross_device_barrier": lambda: [context(), 0, -1, 0, 1],
        "tp_all_reduce": lambda: [context(), 0, [half(2), half(2)], [half(2), half(2)]],
        "gemm_half_q_half_tp": lambda: [
            [half(3, 32)] * 2, matrices(32, 16), [half(3, 16), half(3, 16)], False, context(), -1,
        ],
        "rms_norm_tp": lambda: [[half(3, 8)] * 2, [half(8)] * 2, [half(3, 8), half(3, 8)], 1e-5, context()],
        "tp_attn_forward_": tp_attention_without_pages,
        "tp_attn_forward_paged_": tp_attention,
        "tp_mlp_forward_": lambda: [
            context(), half(3, 32), *[[ABSENT]] * 6, [half(32), half(32)], 1e-5,
            matrices(32, 32), matrices(32, 32), matrices(64, 16), False,
        ],
    }  # fmt: skip


def wrong(value: Any) -> Iterator[tuple[str, Any]]:
    """What no argument like ``value`` may be, unless ACCEPTED has it."""
    yield "none", None
    yield "text", "text"
    if isinstance(value, Tensor):
        yield from wrong_tensors(value)
    elif isinstance(value, bool):
        yield "number", 2.5
    elif isinstance(value, float):
        yield "list", [value]
    elif isinstance(value, int):
        yield "fraction", 1.5
        yield "bool", True
        for number in (-3, 0, 7, 2**40, 2**80):
            if number != value:
                yield str(number), number
    elif isinstance(value, dict):
        yield "list", [value]
        yield "nothing", {}
        yield from wrong_in(value, lambda bad: {**value, 3: bad}, value[3])
    elif isinstance(value, list):
        yield "nothing", []
        yield "one more", [*value, value[0]]
        yield from wrong_in(value, lambda bad: [*value[:-1], bad], value[-1])


def wrong_in(value: Any, replaced: Callable[[Any], Any], last: Any) -> Iterator[tuple[str, Any]]:
    """The same container with one wrong thing in it."""
    if isinstance(last, tuple):
        for bad in ((1, 0, 2), (1, 1, 0), (-1, 1, 2), (1, 1), (1, 1, 2.5), None):
            yield f"with {bad}", replaced(bad)
        return
    for kind, bad in wrong(last):
        yield f"with {kind}", replaced(bad)


def wrong_tensors(value: Tensor) -> Iterator[tuple[str, Any]]:
    if value.is_meta:
        yield "sizes of seven", half(7)
        return
    yield "float64", value.double()
    yield "meta", value.to("meta")
    yield "no dimensions", value.new_zeros(())
    yield "empty", value.new_zeros((0,) * value.dim())
    yield "sizes of seven", value.new_zeros((7,) * value.dim())
    yield "a gap", value.repeat_interleave(2, -1)[..., ::2]


def meant(kinds: set[str], **places: tuple[int, ...]) -> dict[tuple[str, int], set[str]]:
    return {(name, at): kinds for name, some in places.items() for at in some}


NUMBERS = {str(n) for n in (-3, 0, 7, 2**40, 2**80)}
IDS = {"nothing", "one more", *(f"with {n}" for n in NUMBERS)}
TP_ATTENTION = {"tp_attn_forward_", "tp_attn_forward_paged_"}
# What looks wrong but has a meaning.
ACCEPTED: dict[tuple[str, int], set[str]] = {
    # Scratch, which is not looked at, and norms that are not there.
    **meant({"sizes of seven"}, make_q_attn=(9, 10, 23), make_q_mlp=(7, 8, 9, 10, 15)),
    **meant({"sizes of seven"}, make_q_moe_mlp=tuple(range(10, 16)), q_attn_forward_1=(12,)),
    **meant({"sizes of seven"}, q_attn_forward_2=(6,), q_mlp_forward_=(3,)),
    **meant({"nothing", "one more", "with sizes of seven"}, tp_mlp_forward_=tuple(range(2, 8))),
    **meant({"nothing", "one more", "with sizes of seven"}, **dict.fromkeys(TP_ATTENTION, tuple(range(2, 9)))),
    # What may be absent.
    **meant({"meta"}, make_q_attn=(0, 20, 21), make_q_mlp=(0,)),
    **meant({"meta", "sizes of seven"}, q_attn_forward_1=(5,)),
    **meant({"nothing", "with meta"}, tp_mlp_forward_=(8,), **dict.fromkeys(TP_ATTENTION, (11,))),
    # 0: no matrix, nothing to free, no rotation.
    **meant({"0"}, make_q_attn=(5, 6, 7, 18), make_q_mlp=(4,), **dict.fromkeys(TP_ATTENTION, (18,))),
    **meant({"0"}, free_q_attn=(0,), free_q_mlp=(0,), free_q_moe_mlp=(0,), free_tp_context=(0,)),
    # Numbers that are only kept, or name something else that exists, or a device that has no part.
    **meant(NUMBERS, make_q_attn=(11, 16), make_q_mlp=(11,), make_q_moe_mlp=(16,), tp_broadcast=(5,)),
    **meant(NUMBERS - {"0"}, tp_cross_device_barrier=(1, 3), tp_all_reduce=(1,)),
    **meant(NUMBERS, tp_cross_device_barrier=(2, 4)),
    **meant(NUMBERS - {"-3"}, tp_broadcast=(6,), tp_gather=(7,), gemm_half_q_half_tp=(5,)),
    **meant({"0", "7"}, q_attn_forward_1=(4,)),
    **meant({"0"}, tp_gather=(5,)),
    # Adapters: none, or ids that no layer knows.
    **meant(IDS, q_attn_forward_1=(11,), q_attn_forward_2=(5,), q_mlp_forward_=(2,)),
    **meant({"nothing", "with a gap"}, q_attn_set_loras=(1, 3, 5, 7), q_mlp_set_loras=(1, 3, 5)),
    **meant({"with a gap"}, q_attn_set_loras=(2, 4, 6, 8), q_mlp_set_loras=(2, 4, 6)),
    # Tensors that are read by their strides, hold nothing, or have more room than needed.
    **meant({"with a gap"}, tp_gather=(2,), tp_all_reduce=(2, 3), gemm_half_q_half_tp=(0, 2)),
    **meant({"with a gap"}, tp_attn_forward_paged_=(24,)),
    **meant({"no dimensions", "empty"}, tp_broadcast=(2,)),
    **meant({"with sizes of seven"}, tp_broadcast=(4,), tp_gather=(4,)),
    **meant({"one more"}, **dict.fromkeys(TP_ATTENTION, (21, 22))),
    # A context without parts, buffers or streams serves functions that ask for none.
    **meant({"nothing"}, make_tp_context=(0, 1, 2, 3, 4)),
    **meant({"nothing", "one more", "with no dimensions", "with empty", "with sizes of seven"}, make_tp_context=(5,)),
    **meant(IDS - {"with 0"}, make_tp_context=(6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(sound()))
def test_wrong_arguments_are_refused(name: str) -> None:
    make, function = sound()[name], getattr(ext, name)
    function(*make())
    for at, good in enumerate(make()):
        taken = set()
        for kind, bad in wrong(good):
            arguments = make()
            arguments[at] = bad
            try:
                function(*arguments)
                taken.add(kind)
            except (RuntimeError, TypeError):
                pass
        assert taken == ACCEPTED.get((name, at), set()), f"argument {at}"


@pytest.mark.parametrize("name", [n for n in sound() if not n.startswith("make_")])
@pytest.mark.parametrize("other", ["text", "freed"])
def test_a_handle_of_another_kind_or_freed(name: str, other: str) -> None:
    arguments = sound()[name]()
    at = 4 if name in ("gemm_half_q_half_tp", "rms_norm_tp") else 0
    if other == "text":
        arguments[at] = _handles.new("text")
    else:
        _handles.free(arguments[at], object, name="test")
    with pytest.raises(RuntimeError, match="is of a str" if other == "text" else "freed"):
        getattr(ext, name)(*arguments)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("make_q_attn", {"head_dim": 64}),
        ("make_q_attn", {"rope_style": 3}),
        ("make_q_attn", {"sincos_size": 31}),
        ("make_q_attn", {"sincos_size": 64}),
        ("make_q_attn", {"q_norm": half(2, 32)}),
        ("make_q_attn", {"post_layernorm": half(96)}),
        ("make_q_attn", {"layernorm_bias": half(96)}),
        ("make_q_attn", {"q_o_proj": matrix(128, 32)[0]}),
        ("make_q_mlp", {"q_down": matrix(64, 64)[0]}),
        ("make_q_mlp", {"q_gate": matrix(64, 64)[0]}),
        ("make_q_mlp", {"post_layernorm": half(96)}),
        ("make_q_moe_mlp", {"w2": [matrix(32, 64)[0]] * 4}),
        ("make_q_moe_mlp", {"w3": [matrix(32, 64)[0]] * 4}),
        ("make_q_moe_mlp", {"gate": half(5, 32)}),
    ],
)
def test_sizes_that_contradict_each_other(name: str, change: dict[str, Any]) -> None:
    arguments = {
        "make_q_attn": attention_arguments,
        "make_q_mlp": mlp_arguments,
        "make_q_moe_mlp": moe_arguments,
    }
    with pytest.raises(RuntimeError):
        getattr(ext, name)(*arguments[name](**change))


def test_rotary_tables_of_another_width() -> None:
    arguments = sound()["q_attn_forward_1"]()
    arguments[9:11] = tables(20, 16)
    with pytest.raises(RuntimeError, match="sin has shape"):
        ext.q_attn_forward_1(*arguments)
