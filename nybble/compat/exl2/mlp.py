"""Feed-forward blocks behind handles: ``make_q_mlp``, ``make_q_moe_mlp`` and what runs and frees them.

A tensor on the meta device stands for an absent one. What differs from the original is in ``docs/compat/mlp.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nybble import ops
from nybble.compat import _args, _handles
from nybble.compat.exl2 import _layers
from nybble.compat.exl2._layers import Norm, Projection


@dataclass(frozen=True, eq=False)
class QMlp:
    """What an MLP handle stands for."""

    norm: Norm | None
    gate: Projection | None  # None: an MLP without a gate
    up: Projection
    down: Projection
    max_rows: int
    gelu: bool
    residual: bool
    post_norm: Norm | None
    fp32: bool  # the hidden states are float32

    def forward_(self, x: Tensor, ids: list[int]) -> None:
        """The block over ``x`` ``[M, K]``, in place."""
        s = _layers.normed(self.norm, x)
        gate = None if self.gate is None else self.gate(s, ids)
        a = activate(gate, self.up(s, ids), gelu=self.gelu)
        _layers.leave_(x, self.down(a, ids), self.post_norm, residual=self.residual)


@dataclass(frozen=True, eq=False)
class QMoeMlp:
    """What a mixture-of-experts handle stands for."""

    norm: Norm
    router: Tensor  # float16 [E, K]
    per_token: int
    gates: list[Projection]  # w1
    downs: list[Projection]  # w2
    ups: list[Projection]  # w3
    max_rows: int
    gelu: bool

    def expert(self, e: int, s: Tensor) -> Tensor:
        """Expert ``e`` on some rows."""
        return self.downs[e](activate(self.gates[e](s), self.ups[e](s), gelu=self.gelu))

    def forward_(self, x: Tensor) -> None:
        """The block over ``x`` ``[M, K]``, in place."""
        s = self.norm(x)
        logits = ops.matmul(s, self.router)
        # Mirrored, because the old code keeps the higher index among equal logits.
        weights, mirrored = ops.moe_route(logits.flip(-1), self.per_token)
        experts = len(self.ups) - 1 - mirrored
        x.add_(ops.moe_apply(s, weights, experts, self.expert))


def activate(gate: Tensor | None, up: Tensor, *, gelu: bool) -> Tensor:
    """``act(gate) * up``, or ``act(up)`` without a gate; GELU in its tanh form."""
    if gate is None:
        return F.gelu(up, approximate="tanh") if gelu else F.silu(up)
    return ops.gelu_mul(gate, up, tanh=True) if gelu else ops.silu_mul(gate, up)


def make_q_mlp(
    layernorm: Tensor,
    layernorm_bias: Tensor,
    layernorm_is_rms: bool,
    norm_epsilon: float,
    q_gate: int,
    q_up: int,
    q_down: int,
    temp_state: Tensor,
    temp_a: Tensor,
    temp_b: Tensor,
    temp_dq: Tensor,
    max_rows: int,
    act_gelu: bool,
    has_residual: bool,
    post_layernorm: Tensor,
    post_layernorm_bias: Tensor,
    residual_fp32: bool,
    use_graphs: bool,
) -> int:
    """A handle for an MLP ``x += post_norm(down(act(gate(norm(x))) * up(norm(x))))``.

    Args:
        layernorm, layernorm_bias: float16 ``[hidden]`` or absent; the bias counts for layer norm only.
        layernorm_is_rms: of both norms.
        q_gate: a matrix, or 0 for ``down(act(up(x)))``.
        q_up, q_down: matrices.
        temp_state, temp_a, temp_b, temp_dq, use_graphs: not needed.
        max_rows: the most rows that a call may have.
        act_gelu: GELU in its tanh form; otherwise SiLU.
        has_residual: without a post-norm, whether the result is added to ``x`` or replaces it.
        post_layernorm, post_layernorm_bias: float16 ``[hidden]`` or absent.
        residual_fp32: ``x`` is float32.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    _scratch(temp_state=temp_state, temp_a=temp_a, temp_b=temp_b, temp_dq=temp_dq)
    _args.boolean("use_graphs", use_graphs)
    rms = _args.boolean("layernorm_is_rms", layernorm_is_rms)
    eps = _args.number("norm_epsilon", norm_epsilon)
    first = _layers.norm("layernorm", layernorm, layernorm_bias, rms=rms, eps=eps)
    last = _layers.norm("post_layernorm", post_layernorm, post_layernorm_bias, rms=rms, eps=eps)
    up = _layers.projection("up_proj", q_up, K=None if first is None else first.D)
    K, N = up.matrix.K, up.matrix.N
    gate = None
    if _args.integer("q_gate", q_gate) != 0:
        gate = _layers.projection("gate_proj", q_gate, K=K, N=N)
    down = _layers.projection("down_proj", q_down, K=N, N=K)
    if last is not None and last.D != K:
        raise RuntimeError("post_layernorm is wrong shape")
    block = QMlp(
        norm=first,
        gate=gate,
        up=up,
        down=down,
        max_rows=_args.integer("max_rows", max_rows),
        gelu=_args.boolean("act_gelu", act_gelu),
        residual=_args.boolean("has_residual", has_residual),
        post_norm=last,
        fp32=_args.boolean("residual_fp32", residual_fp32),
    )
    return _handles.new(block)


def free_q_mlp(handle: int) -> None:
    """Forget an MLP, not its matrices; 0 is none. Raises ``RuntimeError`` for a handle that is no MLP's."""
    _handles.free(handle, QMlp, name="free_q_mlp")


def q_mlp_forward_(q_mlp: int, x: Tensor, loras: list[int], loras_temp: Tensor) -> None:
    """Run the MLP on ``x``, in place.

    Args:
        q_mlp: from :func:`make_q_mlp`.
        x: ``[..., hidden]`` float16, or float32 if the block was made so; changed in place.
        loras: ids of adapters in the order of their use; those that a layer does not have are passed over.
        loras_temp: not needed.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    block = _handles.get(q_mlp, QMlp, name="q_mlp_forward_")
    rows = _rows(_layers.hidden("x", x, fp32=block.fp32), block.up.matrix.K, block.max_rows)
    block.forward_(rows, _layers.adapter_ids(loras, loras_temp))


def q_mlp_set_loras(
    q_mlp: int,
    gate_a: dict[int, Tensor],
    gate_b: dict[int, Tensor],
    up_a: dict[int, Tensor],
    up_b: dict[int, Tensor],
    down_a: dict[int, Tensor],
    down_b: dict[int, Tensor],
) -> int:
    """Replace all adapters of an MLP and return the largest rank, 0 for none.

    Args:
        q_mlp: from :func:`make_q_mlp`.
        gate_a, gate_b and so on: adapter id to float16 ``[K, r]`` and ``[r, N]``, scaled already; copied.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for what is no dict of tensors.
    """
    block = _handles.get(q_mlp, QMlp, name="q_mlp_set_loras")
    return _layers.set_loras(
        ("gate_proj", block.gate, gate_a, gate_b),
        ("up_proj", block.up, up_a, up_b),
        ("down_proj", block.down, down_a, down_b),
    )


def make_q_moe_mlp(
    layernorm: Tensor,
    layernorm_bias: Tensor,
    layernorm_is_rms: bool,
    norm_epsilon: float,
    gate: Tensor,
    num_experts: int,
    num_experts_per_token: int,
    w1: list[int],
    w2: list[int],
    w3: list[int],
    temp_state: Tensor,
    temp_gathered_state: Tensor,
    temp_a: Tensor,
    temp_b: Tensor,
    temp_logits: Tensor,
    temp_dq: Tensor,
    max_rows: int,
    act_gelu: bool,
) -> int:
    """A handle for ``x += sum over the chosen experts of weight * w2(act(w1(norm(x))) * w3(norm(x)))``.

    Args:
        layernorm, layernorm_bias: float16 ``[hidden]``; the bias may be absent.
        gate: float16 ``[num_experts, hidden]``, the router.
        num_experts, num_experts_per_token: any numbers, the second from 1 to the first.
        w1, w2, w3: one matrix an expert: gate, down and up projection.
        temp_state, temp_gathered_state, temp_a, temp_b, temp_logits, temp_dq: not needed.
        max_rows: the most rows that a call may have.
        act_gelu: GELU in its tanh form; otherwise SiLU.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    _scratch(temp_state=temp_state, temp_gathered_state=temp_gathered_state, temp_a=temp_a)
    _scratch(temp_b=temp_b, temp_logits=temp_logits, temp_dq=temp_dq)
    E, k = (
        _args.integer("num_experts", num_experts),
        _args.integer("num_experts_per_token", num_experts_per_token),
    )
    if not 1 <= k <= E:
        raise RuntimeError(f"num_experts_per_token is {k}, expected 1 to num_experts = {E}")
    rms = _args.boolean("layernorm_is_rms", layernorm_is_rms)
    eps = _args.number("norm_epsilon", norm_epsilon)
    _args.dtype("layernorm", layernorm, "kHalf")
    first = _layers.norm("layernorm", layernorm, layernorm_bias, rms=rms, eps=eps)
    assert first is not None
    router = _args.contiguous("gate", _args.dtype("gate", gate, "kHalf"))
    if router.dim() != 2 or router.shape[1] != first.D:
        raise RuntimeError("layernorm and gate have incompatible shapes")
    if router.shape[0] != E:
        raise RuntimeError("gate output features != num_experts")
    gates, downs, ups = (
        _experts(name, handles, E) for name, handles in (("w1", w1), ("w2", w2), ("w3", w3))
    )
    for one, two, three in zip(gates, downs, ups, strict=True):
        wide = one.matrix.K, one.matrix.N
        if wide != (first.D, three.matrix.N) or three.matrix.K != first.D:
            raise RuntimeError(f"{one.name} or {three.name} is wrong shape")
        if wide != (two.matrix.N, two.matrix.K):
            raise RuntimeError(f"{two.name} is wrong shape")
    block = QMoeMlp(
        norm=first,
        router=router,
        per_token=k,
        gates=gates,
        downs=downs,
        ups=ups,
        max_rows=_args.integer("max_rows", max_rows),
        gelu=_args.boolean("act_gelu", act_gelu),
    )
    return _handles.new(block)


def free_q_moe_mlp(handle: int) -> None:
    """Forget a mixture of experts, not its matrices; 0 is none. Raises ``RuntimeError`` as the others do."""
    _handles.free(handle, QMoeMlp, name="free_q_moe_mlp")


def q_moe_mlp_forward_(q_moe_mlp: int, x: Tensor) -> None:
    """Run the mixture of experts on ``x`` float16 ``[M, hidden]``, in place: every row over all experts.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    block = _handles.get(q_moe_mlp, QMoeMlp, name="q_moe_mlp_forward_")
    given = _layers.hidden("x", x, fp32=False)
    if given.dim() != 2:
        raise RuntimeError("x is wrong shape")
    block.forward_(_rows(given, block.norm.D, block.max_rows))


def _experts(name: str, handles: Any, E: int) -> list[Projection]:
    if len(_layers.sequence(name, handles)) != E:
        raise RuntimeError(f"{name} has {len(handles)} experts, expected num_experts = {E}")
    return [_layers.projection(f"{name}[{e}]", handle) for e, handle in enumerate(handles)]


def _rows(x: Tensor, K: int, max_rows: int) -> Tensor:
    """``x`` as ``[M, K]`` over the same memory."""
    if x.dim() == 0 or x.shape[-1] != K:
        raise RuntimeError("x is wrong shape")
    rows = x.view(-1, K)
    if rows.shape[0] > max_rows:
        raise RuntimeError("Too many rows in x")
    return rows


def _scratch(**tensors: Any) -> None:
    """Each is a tensor or absent; nothing else is asked of memory that is not used."""
    for name, value in tensors.items():
        _args.optional(name, value)
