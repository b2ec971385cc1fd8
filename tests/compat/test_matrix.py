"""The old matrix functions: the recorded calls, what was corrected, and arguments that fit nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble.compat import _handles
from nybble.compat import exllamav2_ext as ext
from tests.compat import recorded

ABSENT = torch.empty((1, 1), device="meta")
UNKNOWN = 12345  # no handle


def exl2() -> list[Any]:
    """Arguments of ``make_q_matrix`` for 64 rows and 16 columns, 32 rows of 4 bits and 32 of 2."""
    K, N = 64, 16
    return [
        torch.randint(-(2**31), 2**31 - 1, (6, N), dtype=torch.int32),
        torch.randperm(K).to(torch.int16),
        torch.arange(K, dtype=torch.int16),
        torch.randint(-(2**31), 2**31 - 1, (2, N // 8), dtype=torch.int32),
        torch.rand(2).half(),
        torch.tensor([4, 0, 2, 4], dtype=torch.int16),
        torch.zeros(2 * K, dtype=torch.int16),
        *[ABSENT] * 3,
        torch.randn(N).half(),
        torch.empty(K * N, dtype=torch.float16),
        K,
    ]


def gptq() -> list[Any]:
    """The same for 64 rows in two groups, in no order."""
    K, N = 64, 16
    return [
        torch.randint(-(2**31), 2**31 - 1, (K // 8, N), dtype=torch.int32),
        torch.zeros(K, dtype=torch.int16),
        torch.zeros(K, dtype=torch.int16),
        *[ABSENT] * 4,
        torch.randint(-(2**31), 2**31 - 1, (2, N // 8), dtype=torch.int32),
        torch.rand(2, N).half(),
        torch.tensor([0, 1], dtype=torch.int32).repeat(K // 2),
        ABSENT,
        ABSENT,
        0,
    ]


def half(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float16)


def matrix() -> int:
    return ext.make_q_matrix(*exl2())


def sound() -> dict[str, Callable[[], list[Any]]]:
    """Arguments each function accepts."""
    index = torch.arange(16, dtype=torch.int32)
    return {
        "make_q_matrix": exl2,
        "make_q_matrix_split": exl2,
        "free_q_matrix": lambda: [matrix()],
        "reconstruct": lambda: [matrix(), half(64, 16)],
        "gemm_half_q_half": lambda: [half(2, 64), matrix(), half(2, 16), False],
        "gemm_half_half_half": lambda: [half(2, 3), half(3, 4), half(2, 4), 1.0, 0.5, False],
        "make_group_map": lambda: [torch.tensor([4, 0, 2, 4], dtype=torch.int16), 6],
        "matrix_fp16_to_q4": lambda: [half(512), torch.zeros(256, dtype=torch.uint8), half(16)],
        "matrix_q4_to_fp16": lambda: [torch.zeros(256, dtype=torch.uint8), half(16), half(512)],
        "tensor_remap": lambda: [torch.ones(2, 16, dtype=torch.int32), index],
        "tensor_remap_4bit": lambda: [torch.ones(2, 2, dtype=torch.int32), index],
    }


def wrong(value: Any) -> dict[str, Any]:
    """What no argument like ``value`` may be."""
    made: dict[str, Any] = {"none": None, "text": "text", "list": []}
    if isinstance(value, Tensor) and not value.is_meta:
        made["float64"] = value.double()
        made["meta"] = value.to("meta")
        made["no dimensions"] = value.new_zeros(())
        made["one dimension more"] = value[None]
        made["sizes of seven"] = value.new_zeros((7,) * value.dim())
        made["empty"] = value.new_zeros((0,) * value.dim())
    elif isinstance(value, bool):
        made["float"] = 2.5
    elif isinstance(value, float):
        made["tensor"] = half(1)
    elif isinstance(value, int):
        made["float"], made["bool"] = 1.5, True
    return made


# What looks wrong but has a meaning: absent tensors, memory whose shape does not matter, nothing at all.
ACCEPTED = {
    ("make_q_matrix", 10): {"meta"},
    ("make_q_matrix", 11): {"meta", "float64", "one dimension more"},
    ("make_q_matrix_split", 10): {"meta"},
    ("make_q_matrix_split", 11): {"meta", "float64", "one dimension more"},
    ("make_group_map", 0): {"empty"},
    ("matrix_fp16_to_q4", 0): {"one dimension more"},
    ("matrix_fp16_to_q4", 1): {"one dimension more"},
    ("matrix_fp16_to_q4", 2): {"one dimension more"},
    ("matrix_q4_to_fp16", 0): {"one dimension more"},
    ("matrix_q4_to_fp16", 1): {"one dimension more"},
    ("matrix_q4_to_fp16", 2): {"one dimension more"},
}


@pytest.mark.parametrize("name", list(sound()))
def test_wrong_arguments_are_refused(name: str) -> None:
    make, function = sound()[name], getattr(ext, name)
    function(*make())
    for at, good in enumerate(make()):
        taken = set()
        for kind, bad in wrong(good).items():
            arguments = make()
            arguments[at] = bad
            try:
                function(*arguments)
                taken.add(kind)
            except (RuntimeError, TypeError):
                pass
        assert taken == ACCEPTED.get((name, at), set()), f"argument {at}"


@pytest.mark.parametrize("name", ["free_q_matrix", "reconstruct", "gemm_half_q_half"])
@pytest.mark.parametrize("handle", [UNKNOWN, -1, 2**80])
def test_unknown_handles_are_refused(name: str, handle: int) -> None:
    arguments = sound()[name]()
    arguments[1 if name == "gemm_half_q_half" else 0] = handle
    with pytest.raises(RuntimeError, match="there is no QMatrix"):
        getattr(ext, name)(*arguments)


def test_a_freed_handle_and_one_of_another_kind() -> None:
    handle = matrix()
    ext.free_q_matrix(handle)
    ext.free_q_matrix(0)
    with pytest.raises(RuntimeError, match="freed"):
        ext.reconstruct(handle, half(64, 16))
    other = _handles.new("text")
    with pytest.raises(RuntimeError, match="is of a str"):
        ext.reconstruct(other, half(64, 16))
    _handles.free(other, str, name="test")


@pytest.mark.parametrize(
    "change",
    [
        {1: ABSENT},  # an order without its inverse
        {1: torch.zeros(64, dtype=torch.int16)},  # no order
        {5: torch.tensor([4, 0, 7, 4], dtype=torch.int16)},  # no such width
        {5: torch.tensor([4, 0, 2, 9], dtype=torch.int16)},  # rows that are not there
        {5: torch.tensor([4, 0, 0, 4], dtype=torch.int16)},
        {6: torch.zeros(126, dtype=torch.int16)},  # groups of another number of rows
        {3: ABSENT},  # neither EXL2 nor GPTQ
        {11: half(64 * 16 - 1)},  # scratch too small
    ],
)
def test_exl2_tensors_that_do_not_fit(change: dict[int, Any]) -> None:
    arguments = [change.get(i, a) for i, a in enumerate(exl2())]
    with pytest.raises(RuntimeError):
        ext.make_q_matrix(*arguments)


@pytest.mark.parametrize(
    "change",
    [
        {1: ABSENT, 2: ABSENT},  # nowhere to write the order
        {9: ABSENT},  # an order, but no groups it could come from
        {9: torch.full((64,), 2, dtype=torch.int32)},  # a group that is not there
        {7: torch.zeros(3, 2, dtype=torch.int32)},  # another number of groups than scales has
    ],
)
def test_gptq_tensors_that_do_not_fit(change: dict[int, Any]) -> None:
    arguments = [change.get(i, a) for i, a in enumerate(gptq())]
    with pytest.raises(RuntimeError):
        ext.make_q_matrix(*arguments)
    assert not arguments[1].numel() or arguments[1].is_meta or not arguments[1].any()


def test_gptq_cannot_be_split() -> None:
    with pytest.raises(RuntimeError, match="must be absent"):
        ext.make_q_matrix_split(*gptq())


def test_columns_can_be_split_off() -> None:
    arguments = exl2()
    whole, part = half(64, 16), half(64, 8)
    ext.reconstruct(ext.make_q_matrix(*arguments), whole)
    for begin in (0, 8):
        cut = list(arguments)
        cut[0] = arguments[0][:, begin : begin + 8].contiguous()
        cut[3] = arguments[3][:, begin // 8 : begin // 8 + 1].contiguous()
        cut[10] = arguments[10][begin : begin + 8].contiguous()
        ext.reconstruct(ext.make_q_matrix_split(*cut), part)
        assert torch.equal(part, whole[:, begin : begin + 8])


def test_one_tensor_may_be_used_twice() -> None:
    """The original rearranged the words in place, and a second call rearranged them again."""
    arguments, first, second = exl2(), half(64, 16), half(64, 16)
    ext.reconstruct(ext.make_q_matrix(*arguments), first)
    ext.reconstruct(ext.make_q_matrix(*arguments), second)
    assert torch.equal(first, second)


def test_activation_order_is_handed_back() -> None:
    arguments = gptq()
    weight = arguments[0].clone()
    handle = ext.make_q_matrix(*arguments)
    order = torch.argsort(arguments[9], stable=True)
    assert arguments[1].tolist() == order.tolist()
    assert arguments[2].tolist() == torch.argsort(order).tolist()
    assert torch.equal(arguments[0], weight)
    ext.free_q_matrix(handle)


def test_row_numbers_are_unsigned() -> None:
    """Beyond 32767 they are negative as int16."""
    K, N = 40960, 8
    arguments = gptq()
    arguments[0] = torch.zeros(K // 8, N, dtype=torch.int32)
    arguments[0][0, 0] = 9
    arguments[1], arguments[2] = torch.empty(2, K, dtype=torch.int16).unbind()
    arguments[7] = torch.full((2, 1), 0x77777777, dtype=torch.int32)
    arguments[8] = torch.ones(2, N).half()
    arguments[9] = (torch.arange(K) < K // 2).int()
    out = half(K, N)
    ext.reconstruct(ext.make_q_matrix(*arguments), out)
    order = torch.argsort(arguments[9], stable=True)
    assert torch.equal(arguments[1].long() & 0xFFFF, order)
    assert torch.equal(arguments[2].long() & 0xFFFF, torch.argsort(order))
    assert out[0, 0] == 1 and int((out == -8).sum()) == K * N - 1

    order = torch.arange(K - 1, -1, -1)
    exl2_arguments = exl2()
    exl2_arguments[0] = torch.zeros(K // 16, N, dtype=torch.int32)
    exl2_arguments[0][0, 0] = 3
    exl2_arguments[1], exl2_arguments[2] = order.to(torch.int16), order.to(torch.int16)
    exl2_arguments[3:6] = [
        torch.zeros(1, 1, dtype=torch.int32),
        torch.ones(1).half(),
        torch.tensor([2, 0]).short(),
    ]
    exl2_arguments[6], exl2_arguments[10:12] = torch.zeros(2 * K).short(), [ABSENT, ABSENT]
    ext.reconstruct(ext.make_q_matrix(*exl2_arguments), out)
    assert out[K - 1, 0] == 1 and int((out == -2).sum()) == K * N - 1


def test_groups_of_any_size_are_what_g_idx_says() -> None:
    """The old code took rows j // group size after sorting, wrong where groups are not all full."""
    arguments = gptq()
    arguments[9] = torch.zeros(64, dtype=torch.int32)
    arguments[9][5:9] = 1
    out = half(64, 16)
    ext.reconstruct(ext.make_q_matrix(*arguments), out)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = (arguments[0][:, None] >> shifts[:, None] & 15).reshape(64, 16)
    zeros = (arguments[7][:, :, None] >> shifts & 15).reshape(2, 16) + 1
    group = arguments[9].long()
    expected = arguments[8][group].double() * (codes - zeros[group])
    assert torch.equal(out, expected.half())


def test_a_matrix_outlives_its_tensors_and_stays_as_it_was() -> None:
    arguments = exl2()
    handle = ext.make_q_matrix(*arguments)
    before, after = half(64, 16), half(64, 16)
    ext.reconstruct(handle, before)
    for t in arguments[:7]:
        t.zero_()
    ext.reconstruct(handle, after)
    assert torch.equal(before, after)


def test_product_is_the_reconstructed_matrix_with_the_bias() -> None:
    arguments = exl2()
    handle, W = ext.make_q_matrix(*arguments), half(64, 16)
    ext.reconstruct(handle, W)
    for M in (0, 1, 5, 40):
        for force in (False, True):
            a, c = torch.randn(M, 64).half(), torch.full((M, 16), torch.nan).half()
            ext.gemm_half_q_half(a, handle, c, force)
            expected = a.double() @ W.double() + arguments[10].double()
            # W was rounded to float16 and so is c; what integer activations lose is far less than either.
            size = a.double().abs() @ W.double().abs() + expected.abs()
            assert ((c.double() - expected).abs() <= 2**-10 * size).all()


def test_a_group_map_too_large_is_refused_before_memory_is_taken() -> None:
    groups = torch.tensor([2, 0], dtype=torch.int16)
    for rows, text in ((16384, "up to 65536"), (2**59, "num_qrows"), (-1, "num_qrows")):
        with pytest.raises(RuntimeError, match=text):
            ext.make_group_map(groups, rows)
    with pytest.raises(RuntimeError):
        ext.make_group_map(torch.tensor([0, 0], dtype=torch.int16), 4)


def test_remapped_columns_must_exist() -> None:
    for bad in (-1, 16, 2**31 - 1):
        index = torch.arange(16, dtype=torch.int32)
        index[3] = bad
        for function, columns in ((ext.tensor_remap, 16), (ext.tensor_remap_4bit, 2)):
            words = torch.ones(2, columns, dtype=torch.int32)
            with pytest.raises(RuntimeError, match="outside 0 to 15"):
                function(words, index)


def test_recorded_calls(data: Path) -> None:
    recorded.check(data, "qmatrix")
