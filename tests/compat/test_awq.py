"""``awq_inference_engine`` and ``ft_attention``: the recorded calls of the original, and calls that must be refused."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nybble import ops
from nybble.compat import awq_inference_engine as old
from nybble.compat import ft_attention
from nybble.compat.awq import _packed
from nybble.formats.awq import AwqGemvLinear, AwqV2Linear

ROOT = Path(__file__).resolve().parents[2]
HALF, INT8 = torch.float16, torch.int8


@pytest.mark.parametrize("family", ["awq_gemm", "awq_misc", "awq_attn"])
def test_recorded_calls(data: Path, family: str) -> None:
    done = subprocess.run(
        [sys.executable, data / "golden" / "replay.py", data / "golden" / "ext", "--device", "cpu",
         "--family", family, "--path", ROOT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_ft_attention_is_the_same_function() -> None:
    assert ft_attention.single_query_attention is old.single_query_attention


# ---- what the original got wrong ----


def codes(K: int, N: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes ``[K, N]``, scales and zeros ``[G, N]``."""
    G = K // group
    return (
        torch.randint(0, 16, (K, N), dtype=torch.uint8),
        (torch.rand(G, N) * 0.02 + 0.001).half(),
        torch.randint(0, 16, (G, N), dtype=torch.uint8),
    )


def close(y: Tensor, expected: Tensor, limit: float) -> bool:
    return float((y.double() - expected).norm() / expected.norm()) < limit


@pytest.mark.parametrize(("K", "group", "split"), [(896, 128, 8), (320, 64, 3), (512, 128, 1)])
def test_any_split_gives_the_product(K: int, group: int, split: int) -> None:
    """K = 896 in 8 parts gave NaN: 28 tiles are no multiple of 8."""
    q, s, z = codes(K, 64, group)
    w = (q.double() - z.repeat_interleave(group, 0)) * s.double().repeat_interleave(group, 0)
    linear, x = AwqGemvLinear.from_codes(q, s, z), torch.randn(5, K).half()
    args = x, linear.qweight, linear.scales, linear.qzeros, group
    assert close(old.gemm_forward_cuda(*args, split), x.double() @ w, 4e-4)
    assert close(old.gemv_forward_cuda(*args), x.double() @ w, 3e-4)


def test_groups_of_32_and_no_others() -> None:
    """Any group but 64 and 128 returned whatever the memory held."""
    q, s, z = codes(256, 12, 32)
    w = (q.double() - z.repeat_interleave(32, 0)) * s.double().repeat_interleave(32, 0)
    linear, x = AwqGemvLinear.from_codes(q, s, z), torch.randn(2, 256).half()
    args = x, linear.qweight, linear.scales, linear.qzeros
    assert close(old.gemv_forward_cuda(*args, 32), x.double() @ w, 3e-4)
    for group in (0, -1, 16, 96, 256):
        with pytest.raises(ValueError, match="group_size"):
            old.gemv_forward_cuda(*args, group)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("M", [1, 8, 32, 33])
@pytest.mark.parametrize("K", [896, 1024])
def test_an_odd_number_of_groups(dtype: torch.dtype, M: int, K: int) -> None:
    """8 to 32 rows skipped parts of K where K / 128 is odd."""
    q, s, z = codes(K, 128, 128)
    linear = AwqV2Linear.from_codes(q, s.to(dtype), z)
    scale, zero = (t[: K // 128].double() for t in (linear.scales, linear.scaled_zeros))
    w = q.double() * scale.repeat_interleave(128, 0) + zero.repeat_interleave(128, 0)
    w = w.to(dtype).double()
    x = torch.randn(1, M, K).to(dtype)
    y = old.gemm_forward_cuda_new(x, linear.qweight, linear.scales, linear.scaled_zeros)
    assert y.shape == (1, M, 128) and y.dtype == dtype
    # Half a unit in the last place of the result, and of the weights that are not rounded here.
    assert close(y, x.double() @ w, 4e-4 if dtype == torch.float16 else 3.5e-3)
    if M <= 7:
        args = x, linear.qweight, linear.scales, linear.scaled_zeros, M, 128, K, 128
        assert torch.equal(old.gemv_forward_cuda_new(*args), y)


def test_a_weight_as_it_is_stored() -> None:
    """Unit vectors read the weights one at a time: q * s + scaled_zero, rounded once."""
    q, s, z = codes(128, 8, 128)
    linear = AwqV2Linear.from_codes(q, s, z)
    args = linear.qweight, linear.scales, linear.scaled_zeros
    exact = q.double() * linear.scales[0].double() + linear.scaled_zeros[0].double()
    assert torch.equal(old.gemm_forward_cuda_new(torch.eye(128).half(), *args), exact.half())


@pytest.mark.parametrize(("M", "N", "K"), [(5, 96, 64), (200, 192, 320), (7, 33, 1000)])
def test_no_column_is_left_out(M: int, N: int, K: int) -> None:
    """Columns beyond whole tiles stayed unwritten; with bias, M <= 128 read five tiles of K only."""
    x, w = (torch.randint(-128, 128, (n, K)).to(INT8) for n in (M, N))
    ws, a, bias = (torch.rand(n).half() * 0.01 for n in (N, M, N))
    total = (x.double() @ w.double().t()) * ws.double() * a.double()[:, None]
    out = torch.full((M, N), torch.nan, dtype=HALF)
    old.w8a8_gemm_forward_cuda(x, w, ws, a, out)
    assert close(out, total, 3e-4)
    old.w8a8_gemm_fuse_bias_forward_cuda(x, w, ws, a, out.fill_(torch.nan), bias)
    assert close(out, total + bias.double(), 3e-4)


def test_gelu_of_small_numbers() -> None:
    """Positive results below 1e-4 did not count for the scale, and then became 127."""
    x = torch.full((1, 64), 5e-5, dtype=HALF)
    out, scale, tmp = (
        torch.zeros(1, 64, dtype=INT8),
        torch.zeros(1, dtype=HALF),
        torch.zeros_like(x),
    )
    old.gelu_and_quant(out, x, scale, tmp)
    assert out.unique().tolist() == [127] and 0 < float(scale) < 1e-6
    x[0, 0] = 1e-3  # a largest number below 0.002 overflowed 127 / a in float16
    old.gelu_and_quant(out, x, scale, tmp)
    assert out[0].tolist() == [127] + [6] * 63


def attention_arguments(dtype: torch.dtype, B: int, H: int, Hkv: int, D: int, L: int) -> list[Any]:
    x = 16 // torch.empty(0, dtype=dtype).element_size()
    q, k, v = (torch.randn(B, h, D).to(dtype) for h in (H, Hkv, Hkv))
    caches = torch.randn(B, Hkv, D // x, L, x).to(dtype), torch.randn(B, Hkv, L, D).to(dtype)
    return [q, k, v, *caches, None, None]


@pytest.mark.parametrize(("dtype", "D"), [(torch.float32, 32), (HALF, 40), (torch.bfloat16, 64)])
def test_attention_with_separate_tensors(dtype: torch.dtype, D: int) -> None:
    """float32 with 32 channels was not turned, 40 ended the process, and k and v were read at q's batch stride."""
    n, args = 2, attention_arguments(dtype, 2, 4, 2, D, 6)
    got = old.single_query_attention(*args, n, D)
    q, k, v, k_cache, v_cache = args[:5]
    angle = n * 10000.0 ** (-torch.arange(0, D, 2) / D)
    turned = []
    for t in (q, k):
        a, b = t.double().chunk(2, -1)
        turned.append(
            torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        )
    keys = k_cache.transpose(2, 3).flatten(3)
    limit = {torch.float32: 1e-5, HALF: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert close(keys[:, :, n], turned[1], limit) and torch.equal(v_cache[:, :, n], v)
    expected = torch.nn.functional.scaled_dot_product_attention(
        turned[0][:, :, None],
        *(t[:, :, : n + 1].double().repeat_interleave(2, 1) for t in (keys, v_cache)),
    )[:, :, 0]
    assert close(got, expected, limit)


# ---- packed once ----


def test_a_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q, s, z = codes(128, 64, 128)
    linear, x = AwqGemvLinear.from_codes(q, s, z), torch.randn(1, 128).half()
    packings = []
    original = AwqGemvLinear.to_packed
    monkeypatch.setattr(
        AwqGemvLinear, "to_packed", lambda self: packings.append(0) or original(self)
    )
    args = linear.qweight, linear.scales, linear.qzeros, 128
    first = old.gemv_forward_cuda(x, *args)
    assert torch.equal(old.gemv_forward_cuda(x, *args), first) and len(packings) == 1
    linear.scales.mul_(2)  # changed in place: seen
    assert torch.equal(old.gemv_forward_cuda(x, *args), 2 * first) and len(packings) == 2
    # Another memory behind the same tensor: seen.
    linear.qweight.data = torch.zeros_like(linear.qweight)
    old.gemv_forward_cuda(x, *args)
    assert len(packings) == 3
    other = linear.scales.clone()  # another tensor: seen, though it holds the same
    old.gemv_forward_cuda(x, linear.qweight, other, linear.qzeros, 128)
    assert len(packings) == 4


def test_a_weight_made_in_inference_mode_is_packed_once_too() -> None:
    """Such a tensor counts no versions."""
    x = torch.randn(1, 128).half()
    with torch.inference_mode():
        linear = AwqGemvLinear.from_codes(*codes(128, 64, 128))
        args = linear.qweight, linear.scales, linear.qzeros, 128
        first = old.gemv_forward_cuda(x, *args)
        entry = _packed._entries[linear.qweight]
        assert torch.equal(old.gemv_forward_cuda(x, *args), first)
        assert _packed._entries[linear.qweight] is entry
        linear.scales.mul_(2)
        assert torch.equal(old.gemv_forward_cuda(x, *args), 2 * first)


def test_a_freed_weight_is_forgotten() -> None:
    gc.collect()
    before = len(_packed._entries)
    linear, x = AwqGemvLinear.from_codes(*codes(128, 64, 128)), torch.randn(1, 128).half()
    old.gemv_forward_cuda(x, linear.qweight, linear.scales, linear.qzeros, 128)
    assert len(_packed._entries) == before + 1
    del linear
    gc.collect()
    assert len(_packed._entries) == before


# ---- refused ----


def sound() -> dict[str, list[Any]]:
    """Arguments that each function accepts; a fresh set at each call."""
    f, i = torch.ones, torch.zeros
    old_rows = [
        f(2, 128).half(),
        i(64, 16, dtype=torch.int32),
        f(64, 8).half(),
        i(64, 1, dtype=torch.int32),
    ]
    new_rows = [f(2, 128).half(), i(16, 128, dtype=torch.int16), f(8, 64).half(), f(8, 64).half()]
    codes8 = [
        f(2, 64, dtype=INT8),
        f(64, 64, dtype=INT8),
        f(64).half(),
        f(2).half(),
        i(2, 64, dtype=HALF),
    ]
    norm = [i(2, 8, dtype=INT8), f(2, 8).half(), f(8).half(), f(8).half()]
    return {
        "layernorm_forward_cuda": [f(1, 2, 8).half(), f(8).half(), i(1, 2, 8).half(), 1e-6],
        "gemm_forward_cuda": [*old_rows, 128, 1],
        "gemv_forward_cuda": [*old_rows, 128],
        "gemm_forward_cuda_new": new_rows,
        "gemv_forward_cuda_new": [*new_rows, 2, 64, 128, 128],
        "rotary_embedding_neox": [i(2, dtype=torch.int64), f(1, 2, 2, 8), f(1, 2, 2, 8), 8, f(4, 8)],
        "fused_rope_with_pos_forward_func": [f(1, 2, 2, 8), f(2, 1, 1, 8), False],
        "single_query_attention": [
            f(1, 2, 8), f(1, 2, 8), f(1, 2, 8), f(1, 2, 2, 3, 4), f(1, 2, 3, 8),
            i(1, dtype=torch.int32), f(2), 0, 8, 10000.0, 1.0, True,
        ],
        "w8a8_gemm_forward_cuda": codes8,
        "w8a8_gemm_fuse_bias_forward_cuda": [*codes8, f(64).half()],
        "invoke_quant": [i(2, 8, dtype=INT8), f(2, 8), f(2).half()],
        "rms_norm_general": [*norm, f(2).half(), 1e-5, True],
        "silu_and_mul": [f(2, 8)],
        "gelu_and_quant": [i(2, 8, dtype=INT8), f(2, 8).half(), f(2).half(), f(2, 8).half()],
    }  # fmt: skip


def wrong(value: Any) -> list[Any]:
    """What no function takes in place of ``value``."""
    if isinstance(value, Tensor):
        other = torch.float64 if value.dtype != torch.float64 else torch.int32
        dtypes = (torch.complex64, torch.bool, other)
        return [*map(value.to, dtypes), value.to("meta"), value.new_zeros(()), None, "text", 3]
    return [None, "text", torch.zeros(2, 2), 1j]


# Here None stands for an absent tensor.
SERVED = {
    ("single_query_attention", 5, "NoneType"),
    ("single_query_attention", 6, "NoneType"),
}


@pytest.mark.parametrize("name", sorted(sound()))
def test_wrong_arguments_are_refused(name: str) -> None:
    function: Callable[..., Any] = getattr(old, name)
    function(*sound()[name])
    accepted = []
    for at, value in enumerate(sound()[name]):
        for bad in wrong(value):
            arguments = sound()[name]
            arguments[at] = bad
            given = [a for a in arguments if isinstance(a, Tensor) and not a.is_meta]
            before = [a.clone() for a in given]
            try:
                function(*arguments)
            except (TypeError, RuntimeError, ValueError):
                assert all(map(torch.equal, given, before)), f"{name}: {at} was refused too late"
                continue
            if (name, at, type(bad).__name__) not in SERVED:
                accepted.append((at, bad))
    assert not accepted
    for arguments in (sound()[name][:-5], [*sound()[name], 1, 2]):
        with pytest.raises(TypeError):
            function(*arguments)


@pytest.mark.parametrize("name", sorted(sound()))
def test_every_size_may_be_wrong_or_zero(name: str) -> None:
    """A tensor with one size changed: an exception or a result, and the process lives."""
    calls = refused = 0
    for at, value in enumerate(sound()[name]):
        for axis in range(value.dim() if isinstance(value, Tensor) else 0):
            for size in (0, value.shape[axis] + 1, 2 * value.shape[axis]):
                arguments = sound()[name]
                arguments[at] = torch.zeros(
                    *value.shape[:axis], size, *value.shape[axis + 1 :], dtype=value.dtype
                )
                calls += 1
                try:
                    getattr(old, name)(*arguments)
                except (RuntimeError, ValueError):
                    refused += 1
    assert refused > 0.5 * calls or name == "silu_and_mul"


@pytest.mark.parametrize("name", sorted(sound()))
def test_only_two_functions_know_names(name: str) -> None:
    """The others took positions only."""
    named = {"single_query_attention": "timestep", "rms_norm_general": "epsilon"}
    *arguments, last = sound()[name]
    if name in named:
        assert named[name] in getattr(old, name).__annotations__
    else:
        parameter = list(getattr(old, name).__annotations__)[len(arguments)]
        with pytest.raises(TypeError):
            getattr(old, name)(*arguments, **{parameter: last})


def test_nothing_is_written_by_a_refused_step() -> None:
    """A negative position would be a slot from the ring's end."""
    args = attention_arguments(HALF, 2, 4, 2, 64, 6)
    before = [args[3].clone(), args[4].clone()]
    with pytest.raises(RuntimeError, match="negative"):
        old.single_query_attention(*args[:5], torch.tensor([1, -1], dtype=torch.int32), None, 1)
    assert torch.equal(args[3], before[0]) and torch.equal(args[4], before[1])


def test_strided_inputs_are_read_as_they_are() -> None:
    x = torch.randn(4, 6, 128).half().transpose(0, 1)
    out, scale = torch.zeros(6, 4, 128, dtype=INT8), torch.zeros(24, dtype=HALF)
    old.invoke_quant(out, x, scale)
    assert torch.equal(out, ops.quantize_int8(x.contiguous())[0])
    linear = AwqGemvLinear.from_codes(*codes(128, 64, 128))
    args = linear.qweight, linear.scales, linear.qzeros, 128
    wide = torch.randn(3, 256).half()
    assert torch.equal(
        old.gemv_forward_cuda(wide[:, ::2], *args),
        old.gemv_forward_cuda(wide[:, ::2].contiguous(), *args),
    )
