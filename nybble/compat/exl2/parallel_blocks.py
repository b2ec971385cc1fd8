"""What blocks over several shards have in common, and the MLP: ``tp_mlp_forward_``.

Each shard has some columns of every matrix. What the shards make is gathered before the last product, which needs all of it; the
result, the residual added, is left in the context's first buffer. What differs from the original is in ``docs/compat/parallel.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args, _handles
from nybble.compat.exl2 import _layers
from nybble.compat.exl2._layers import Norm, Projection, normed
from nybble.compat.exl2.mlp import activate
from nybble.compat.exl2.parallel import TpContext, projections


def tp_mlp_forward_(
    tp_context: int,
    hidden_states: Tensor,
    temp_bc0: list[Tensor],
    temp_bc1: list[Tensor],
    temp_bc2: list[Tensor],
    temp_gate: list[Tensor],
    temp_up: list[Tensor],
    temp_down: list[Tensor],
    pre_layernorm: list[Tensor],
    norm_epsilon: float,
    gate: list[int],
    up: list[int],
    down: list[int],
    act_gelu: bool,
) -> None:
    """A gated MLP over shards: ``buffer 0 = x + down(act(gate(norm(x))) * up(norm(x)))``.

    Args:
        tp_context: from ``make_tp_context``.
        hidden_states: float16 ``[M, hidden]``, usually the start of buffer 0.
        temp_bc0, temp_bc1, temp_bc2, temp_gate, temp_up, temp_down: lists of tensors, not needed.
        pre_layernorm: one a shard, float16 ``[hidden]``, RMS; or an empty list.
        gate, up, down: matrices, one a shard: some columns of each.
        act_gelu: GELU in its tanh form; otherwise SiLU.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    context = _handles.get(tp_context, TpContext, name="tp_mlp_forward_")
    check_scratch(temp_bc0, temp_bc1, temp_bc2, temp_gate, temp_up, temp_down)
    x = _layers.hidden("hidden_states", hidden_states, fp32=False)
    gelu = _args.boolean("act_gelu", act_gelu)
    first, second = (projections(name, h) for name, h in (("gate", gate), ("up", up)))
    last = last_of(context, x, second, projections("down", down))
    norms = norms_of(pre_layernorm, norm_epsilon, len(second), x.shape[1])
    if [layer.matrix.N for layer in first] != [layer.matrix.N for layer in second]:
        raise RuntimeError("gate and up are of different widths")
    check_inputs(x, first)
    made = []
    for one, two, norm in zip(first, second, norms, strict=True):
        s = normed(norm, x.to(one.matrix.device))
        made.append(activate(one(s), two(s), gelu=gelu))
    gather_and_leave_(context, x, made, last)


def norms_of(weights: Any, epsilon: Any, count: int, K: int) -> list[Norm | None]:
    eps = _args.number("norm_epsilon", epsilon)
    given = _layers.sequence("pre_layernorm", weights)
    if len(given) not in (0, count):
        raise RuntimeError(f"pre_layernorm has {len(given)} tensors, expected 0 or {count}")
    absent = torch.empty(0, device="meta")
    norms = [_layers.norm("pre_layernorm", w, absent, rms=True, eps=eps) for w in given]
    if any(norm is not None and norm.D != K for norm in norms):
        raise RuntimeError("pre_layernorm and hidden_states have incompatible shapes")
    return norms or [None] * count


def check_inputs(x: Tensor, layers: Sequence[Projection]) -> None:
    """Every layer takes the columns of ``x`` ``[M, K]``."""
    for layer in layers:
        if x.dim() != 2 or x.shape[1] != layer.matrix.K:
            raise RuntimeError(f"{layer.name} is wrong shape")


def last_of(
    context: TpContext, x: Tensor, made: Sequence[Projection], last: list[Projection]
) -> list[Projection]:
    """The layers that read what ``made`` gives side by side; they and the buffer must have room for it."""
    check_inputs(x, made)
    K = sum(layer.matrix.N for layer in made)
    if len(last) != len(made) or any(layer.matrix.K != K for layer in last):
        raise RuntimeError(f"the last matrices are wrong, expected {len(made)} with {K} inputs")
    if not last or sum(layer.matrix.N for layer in last) != x.shape[1]:
        raise RuntimeError(
            f"the last matrices do not give the {x.shape[1]} hidden columns together"
        )
    context.buffer(0, x, x.numel())
    return last


def gather_and_leave_(
    context: TpContext, x: Tensor, made: Sequence[Tensor], last: Sequence[Projection]
) -> None:
    """Gather what the shards made, multiply, add ``x``, gather that into buffer 0."""
    width = sum(part.shape[1] for part in made)
    whole = ops.gather_columns_(made[0].new_empty(x.shape[0], width), made)
    ends, begin = [], 0
    for layer in last:
        y = layer(whole.to(layer.matrix.device).float())
        end = begin + layer.matrix.N
        # New tensors: x may be the very memory that the result goes to.
        ends.append((y + x[:, begin:end].to(y.device)).half())
        begin = end
    ops.gather_columns_(context.buffer(0, x, x.numel()).view(x.shape), ends)


def check_scratch(*lists: Any) -> None:
    for tensors in lists:
        for t in _layers.sequence("a list of scratch", tensors):
            _args.tensor("scratch", t)
