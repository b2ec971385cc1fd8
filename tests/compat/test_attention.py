"""The old attention blocks: recorded calls, and what the old code got wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nybble.compat import exllamav2_ext as ext
from tests.compat.making import (
    ABSENT,
    attention_arguments,
    close,
    half,
    matrix,
    rms_norm,
    tables,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("family", ["attn", "mlp"])
def test_recorded_calls(data: Path, family: str) -> None:
    tool, calls = data / "golden" / "replay.py", data / "golden" / "ext"
    done = subprocess.run(
        [sys.executable, tool, calls, "--device", "cpu", "--family", family, "--path", ROOT, "-v"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def forward_1(block: int, x: Tensor, past_len: int, past_lens: Tensor = ABSENT) -> list[Tensor]:
    """Queries, keys and values of ``x`` ``[B, T, 64]``."""
    B, T, _ = x.shape
    out = [torch.full((B, T, n), torch.nan).half() for n in (128, 64, 64)]
    sin, cos = tables(20, 32)
    ext.q_attn_forward_1(block, x, B, T, past_len, past_lens, *out, sin, cos, [], ABSENT)
    return out


def test_positions() -> None:
    """Three ways to say where two sequences stand, and one that begins before the first position."""
    block, x = ext.make_q_attn(*attention_arguments()), half(2, 3, 64)
    lens = torch.tensor([4, 9], dtype=torch.int32)
    both = forward_1(block, x, -1, lens)
    for sum_of_two in (forward_1(block, x, 3, lens - 3), forward_1(block, x, 0, lens[:, None])):
        assert all(torch.equal(a, b) for a, b in zip(sum_of_two, both, strict=True))
    alone = forward_1(block, x[1:], 9)
    assert all(torch.equal(a, b[1:]) for a, b in zip(alone, both, strict=True))
    early = forward_1(block, x[:1], 0, torch.tensor([-2], dtype=torch.int32))
    at_zero = forward_1(block, x[:1, :1], 0)
    assert torch.equal(early[0][:, :1], at_zero[0])


@pytest.mark.parametrize(("past", "lens"), [(18, None), (-1, None), (-2, [0, 0]), (0, [0, 18])])
def test_positions_outside_the_tables(past: int, lens: list[int] | None) -> None:
    """The old code read whatever lay behind them."""
    block, x = ext.make_q_attn(*attention_arguments()), half(2, 3, 64)
    given = ABSENT if lens is None else torch.tensor(lens, dtype=torch.int32)
    with pytest.raises(RuntimeError):
        forward_1(block, x, past, given)


def test_outputs_with_room_behind_them() -> None:
    """The old code looked at addresses only: there may be more memory than rows."""
    block, x = ext.make_q_attn(*attention_arguments()), half(1, 2, 64)
    want, (sin, cos) = forward_1(block, x, 0), tables(20, 32)
    out = [torch.full((5, n), 7.0).half() for n in (128, 64, 64)]
    ext.q_attn_forward_1(block, x, 1, 2, 0, ABSENT, *out, sin, cos, [], ABSENT)
    for got, one in zip(out, want, strict=True):
        assert torch.equal(got[:2], one[0]) and (got[2:] == 7).all()


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("post", [False, True])
def test_an_adapter_of_the_output_comes_before_the_post_norm(fp32: bool, post: bool) -> None:
    """The old code added it behind the norm, in float16 even where the residual is float32."""
    o, W = matrix(128, 64)
    weight = half(64)
    block = ext.make_q_attn(
        *attention_arguments(
            q_o_proj=o, post_layernorm=weight if post else ABSENT, residual_fp32=fp32
        )
    )
    a, b = half(128, 3), half(3, 64)
    ext.q_attn_set_loras(block, *[{}] * 6, {7: a}, {7: b})
    x, seen = half(2, 64), half(2, 128)
    x = x.float() if fp32 else x
    y = seen.double() @ (W + a.double() @ b.double())
    want = x.double() + (rms_norm(y, weight) if post else y)
    ext.q_attn_forward_2(block, x, seen, 1, 2, [7], ABSENT)
    close(x, want)


def test_adapters_that_do_not_fit_change_nothing() -> None:
    block, x = ext.make_q_attn(*attention_arguments()), half(1, 2, 64)
    good = {3: half(64, 4)}, {3: half(4, 128)}
    assert ext.q_attn_set_loras(block, *good, *[{}] * 6) == 4
    sin, cos = tables(20, 32)
    out = [torch.empty(2, n).half() for n in (128, 64, 64)]
    ext.q_attn_forward_1(block, x, 1, 2, 0, ABSENT, *out, sin, cos, [3], ABSENT)
    before = out[0].clone()
    bad = [
        ({3: half(64, 4)}, {}),  # an A without its B
        ({3: half(64, 4)}, {3: half(5, 64)}),
        ({3: half(64, 4)}, {3: half(4, 128)}),
        ({3: half(64, 4).float()}, {3: half(4, 64)}),
    ]
    for a, b in bad:
        with pytest.raises(RuntimeError):
            ext.q_attn_set_loras(block, {}, {}, a, b, *[{}] * 4)
    ext.q_attn_forward_1(block, x, 1, 2, 0, ABSENT, *out, sin, cos, [3], ABSENT)
    assert torch.equal(out[0], before)
    assert ext.q_attn_set_loras(block, *[{}] * 8) == 0


def test_a_block_without_its_first_half() -> None:
    block = ext.make_q_attn(*attention_arguments(q_q_proj=0, q_k_proj=0, q_v_proj=0))
    ext.q_attn_forward_2(block, half(2, 64), half(2, 128), 1, 2, [], ABSENT)
    with pytest.raises(RuntimeError, match="without q_proj"):
        forward_1(block, half(1, 2, 64), 0)


def test_a_block_outlives_the_handles_of_its_matrices() -> None:
    arguments = attention_arguments()
    block, x = ext.make_q_attn(*arguments), half(1, 2, 64)
    before = forward_1(block, x, 0)
    for h in arguments[5:9]:
        ext.free_q_matrix(h)
    assert all(torch.equal(a, b) for a, b in zip(forward_1(block, x, 0), before, strict=True))
    ext.free_q_attn(block)
    with pytest.raises(RuntimeError, match="freed"):
        forward_1(block, x, 0)
