"""Matrices and block arguments for the tests of the old block functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nybble.compat import _handles
from nybble.compat.exl2.matrix import QMatrix
from nybble.ops.packed import PackedMatrix, dequantize, make_packed

ABSENT = torch.empty((1, 1), device="meta")
CPU = torch.device("cpu")


def half(*shape: int) -> Tensor:
    return torch.randn(shape).half()


def packed(K: int, N: int, *, bias: bool = False) -> PackedMatrix:
    """Random numbers of 4 bits, so scaled that a product is about as large as its input."""
    G = K // 32
    return make_packed(
        torch.randint(0, 16, (K, N), dtype=torch.uint8),
        (torch.rand(G, N) * 0.1 + 0.1).div(K**0.5).half(),
        torch.full((G,), 4),
        torch.arange(K) // 32,
        bias=half(N) if bias else None,
    )


def handle(matrix: PackedMatrix) -> int:
    return _handles.new(QMatrix(matrix, CPU))


def matrix(K: int, N: int, *, bias: bool = False) -> tuple[int, Tensor]:
    """A handle, and what it stands for in float64."""
    made = packed(K, N, bias=bias)
    return handle(made), dequantize(made).double()


def columns(made: PackedMatrix, begin: int, end: int) -> PackedMatrix:
    """Some columns of a matrix, in whole blocks of 16."""
    tiles, first, last = made.scales.shape[0], begin // 16, end // 16
    return PackedMatrix(
        K=made.K,
        N=end - begin,
        weight=made.weight.view(tiles, -1)[first:last].flatten().clone(),
        scales=made.scales[first:last].clone(),
        blocks=made.blocks,
        bias=None if made.bias is None else made.bias[begin:end].clone(),
    )


def attention_arguments(**changes: Any) -> list[Any]:
    """Arguments of ``make_q_attn``: 64 hidden columns, 4 heads of 32 over 2 of keys and values."""
    given: dict[str, Any] = {
        "layernorm": half(64),
        "layernorm_bias": ABSENT,
        "layernorm_is_rms": True,
        "headnorm_is_rms": True,
        "norm_epsilon": 1e-5,
        "q_q_proj": None,
        "q_k_proj": None,
        "q_v_proj": None,
        "q_o_proj": None,
        "temp_state": ABSENT,
        "temp_dq": ABSENT,
        "max_rows": 64,
        "hidden_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "max_seq_len": 64,
        "has_residual": True,
        "rope_style": 2,
        "sincos_size": 32,
        "q_norm": half(4, 32),
        "k_norm": half(2, 32),
        "post_layernorm": ABSENT,
        "post_layernorm_bias": ABSENT,
        "residual_fp32": False,
        "use_graphs": False,
    } | changes
    shapes = {"q_q_proj": (64, 128), "q_k_proj": (64, 64), "q_v_proj": (64, 64), "q_o_proj": (128, 64)}  # fmt: skip
    for name, shape in shapes.items():
        if given[name] is None:
            given[name] = matrix(*shape)[0]
    return list(given.values())


def mlp_arguments(**changes: Any) -> list[Any]:
    """Arguments of ``make_q_mlp``: 64 hidden columns, 96 inner ones."""
    given: dict[str, Any] = {
        "layernorm": half(64),
        "layernorm_bias": ABSENT,
        "layernorm_is_rms": True,
        "norm_epsilon": 1e-5,
        "q_gate": None,
        "q_up": None,
        "q_down": None,
        "temp_state": ABSENT,
        "temp_a": ABSENT,
        "temp_b": ABSENT,
        "temp_dq": ABSENT,
        "max_rows": 40,
        "act_gelu": False,
        "has_residual": True,
        "post_layernorm": ABSENT,
        "post_layernorm_bias": ABSENT,
        "residual_fp32": False,
        "use_graphs": False,
    } | changes
    for name, shape in {"q_gate": (64, 96), "q_up": (64, 96), "q_down": (96, 64)}.items():
        if given[name] is None:
            given[name] = matrix(*shape)[0]
    return list(given.values())


def moe_arguments(E: int = 4, k: int = 2, **changes: Any) -> list[Any]:
    """Arguments of ``make_q_moe_mlp``: 32 hidden columns, 32 inner ones."""
    given: dict[str, Any] = {
        "layernorm": half(32),
        "layernorm_bias": ABSENT,
        "layernorm_is_rms": True,
        "norm_epsilon": 1e-5,
        "gate": half(E, 32),
        "num_experts": E,
        "num_experts_per_token": k,
        "w1": None,
        "w2": None,
        "w3": None,
        "temp_state": ABSENT,
        "temp_gathered_state": ABSENT,
        "temp_a": ABSENT,
        "temp_b": ABSENT,
        "temp_logits": ABSENT,
        "temp_dq": ABSENT,
        "max_rows": 64,
        "act_gelu": False,
    } | changes
    for name in ("w1", "w2", "w3"):
        if given[name] is None:
            given[name] = [matrix(32, 32)[0] for _ in range(E)]
    return list(given.values())


def tables(positions: int, width: int) -> tuple[Tensor, Tensor]:
    """sin and cos as the old code keeps them: each angle twice, one half after the other."""
    angle = torch.arange(positions)[:, None] * torch.logspace(0, -3, width // 2)
    angle = torch.cat([angle, angle], -1)
    return angle.sin().half(), angle.cos().half()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


def close(got: Tensor, want: Tensor) -> None:
    """Within what float16 storage, 16-bit activations and float16 attention may cost."""
    error, size = (got.double() - want).abs().max(), want.abs().max()
    assert error <= 2e-3 * size + 1e-6, f"{float(error):.3g} of {float(size):.3g}"
