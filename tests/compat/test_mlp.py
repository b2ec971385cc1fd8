"""The old MLP and mixture-of-experts blocks: what the old code got wrong. Recorded calls are in test_attention.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nybble.compat import exllamav2_ext as ext
from nybble.compat.exl2.mlp import activate
from nybble.ops.packed import dequantize
from tests.compat.making import (
    ABSENT,
    close,
    half,
    handle,
    matrix,
    mlp_arguments,
    moe_arguments,
    packed,
    rms_norm,
)


def act(x: Tensor, gelu: bool) -> Tensor:
    return F.gelu(x, approximate="tanh") if gelu else F.silu(x)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_every_column_is_activated(gated: bool, gelu: bool) -> None:
    """96 inner columns: the old kernel left the last 32 of a width like this as they were."""
    (g, G), (u, U), (d, D) = matrix(64, 96), matrix(64, 96), matrix(96, 64)
    weight, x = half(64), half(3, 5, 64)
    block = ext.make_q_mlp(
        *mlp_arguments(layernorm=weight, q_gate=g if gated else 0, q_up=u, q_down=d, act_gelu=gelu)
    )
    s = rms_norm(x, weight)
    inner = act(s @ G, gelu) * (s @ U) if gated else act(s @ U, gelu)
    want = x.double() + inner @ D
    ext.q_mlp_forward_(block, x, [], ABSENT)
    close(x, want)


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_way_out(fp32: bool, post: bool, residual: bool) -> None:
    """An adapter of the down projection comes before the post-norm; a float32 residual stays float32.

    With a post-norm the sum is made whatever ``has_residual`` says.
    """
    (g, G), (u, U), (d, D) = matrix(64, 96), matrix(64, 96), matrix(96, 64)
    weight, last = half(64), half(64)
    block = ext.make_q_mlp(
        *mlp_arguments(
            layernorm=weight,
            q_gate=g,
            q_up=u,
            q_down=d,
            has_residual=residual,
            post_layernorm=last if post else ABSENT,
            residual_fp32=fp32,
        )
    )
    a, b = half(96, 2), half(2, 64)
    assert ext.q_mlp_set_loras(block, *[{}] * 4, {1: a}, {1: b}) == 2
    x = half(4, 64).float() if fp32 else half(4, 64)
    s = rms_norm(x, weight)
    y = (F.silu(s @ G) * (s @ U)) @ (D + a.double() @ b.double())
    want = rms_norm(y, last) if post else y
    want = x.double() + want if residual or post else want
    ext.q_mlp_forward_(block, x, [1], ABSENT)
    close(x, want)


def test_products_beyond_float16_inside_the_block() -> None:
    """The old code lost them to infinity between gate and down projection."""
    (g, G), (u, U), (d, D) = matrix(64, 96), matrix(64, 96), matrix(96, 64)
    weight = torch.full((64,), 400.0).half()
    block = ext.make_q_mlp(
        *mlp_arguments(layernorm=weight, q_gate=g, q_up=u, q_down=d, residual_fp32=True)
    )
    x = torch.randn(2, 64)
    s = rms_norm(x, weight)
    inner = F.silu(s @ G) * (s @ U)
    assert inner.abs().max() > 65504
    want = x.double() + inner @ D
    ext.q_mlp_forward_(block, x, [], ABSENT)
    close(x, want)


@pytest.mark.parametrize("gelu", [False, True])
def test_the_activations(gelu: bool) -> None:
    """GELU in its tanh form, not the erf form: they differ by up to 5e-4."""
    up, gate = torch.linspace(-8, 8, 999), torch.randn(999)
    want = act(up.double(), gelu)
    assert (activate(None, up, gelu=gelu) - want).abs().max() < 1e-5
    want = act(gate.double(), gelu) * up.double()
    assert (activate(gate, up, gelu=gelu) - want).abs().max() < 1e-5


def test_what_is_not_finite_is_held_at_the_first_norm() -> None:
    """An infinity counts as 65504 of its sign, NaN as 65504: one bad number must not spoil a whole row."""
    arguments = mlp_arguments(has_residual=False)
    block, x = ext.make_q_mlp(*arguments), half(2, 64)
    held = x.clone()
    x[0, 3], x[0, 5], x[1, 7] = torch.inf, -torch.inf, torch.nan
    held[0, 3], held[0, 5], held[1, 7] = 65504.0, -65504.0, 65504.0
    for rows in (x, held):
        ext.q_mlp_forward_(block, rows, [], ABSENT)
    assert torch.equal(x, held) and x.isfinite().all()


def test_adapters_of_a_gate_that_is_not_there() -> None:
    block = ext.make_q_mlp(*mlp_arguments(q_gate=0))
    with pytest.raises(RuntimeError, match="gate_proj"):
        ext.q_mlp_set_loras(block, {1: half(64, 2)}, {1: half(2, 96)}, *[{}] * 4)


def mixture(
    E: int, k: int, gate: Tensor, weight: Tensor
) -> tuple[int, Callable[[int, Tensor], Tensor]]:
    """A block, and one expert on one normed row in float64. The last matrices have a bias."""
    w1, w3 = ([matrix(32, 32) for _ in range(E)] for _ in range(2))
    w2 = [packed(32, 32, bias=True) for _ in range(E)]
    block = ext.make_q_moe_mlp(
        *moe_arguments(
            E,
            k,
            gate=gate,
            layernorm=weight,
            w1=[h for h, _ in w1],
            w2=[handle(m) for m in w2],
            w3=[h for h, _ in w3],
        )
    )

    def expert(e: int, s: Tensor) -> Tensor:
        bias = w2[e].bias
        assert bias is not None
        return (F.silu(s @ w1[e][1]) * (s @ w3[e][1])) @ dequantize(w2[e]).double() + bias.double()

    return block, expert


@pytest.mark.parametrize("E", [1, 4, 5, 8, 128])
@pytest.mark.parametrize("M", [1, 4, 40])
def test_every_row_meets_its_experts(E: int, M: int) -> None:
    """The old code served at most 4 rows and 4, 8, 16 or 128 experts; of 128, only those that row 0 had chosen.

    And it added the bias of a last matrix once an expert, without the expert's weight.
    """
    k, gate, weight, x = min(3, E), half(E, 32), half(32), half(M, 32)
    block, expert = mixture(E, k, gate, weight)
    s = rms_norm(x, weight)
    top = (s @ gate.double().T).softmax(-1).topk(k)
    share = top.values / top.values.sum(-1, keepdim=True)
    want = x.double()
    for m in range(M):
        for p, e in zip(share[m], top.indices[m].tolist(), strict=True):
            want[m] += p * expert(e, s[m])
    ext.q_moe_mlp_forward_(block, x)
    close(x, want)


def test_of_equal_experts_the_last_are_chosen() -> None:
    """A router of zeros: the old rule drops the lowest index first."""
    weight, x = half(32), half(2, 32)
    block, expert = mixture(5, 2, torch.zeros(5, 32).half(), weight)
    s = rms_norm(x, weight)
    want = x.double() + 0.5 * (expert(3, s) + expert(4, s))
    ext.q_moe_mlp_forward_(block, x)
    close(x, want)


def test_no_rows() -> None:
    ext.q_moe_mlp_forward_(ext.make_q_moe_mlp(*moe_arguments()), half(0, 32))
    ext.q_mlp_forward_(ext.make_q_mlp(*mlp_arguments()), half(0, 64), [], ABSENT)
