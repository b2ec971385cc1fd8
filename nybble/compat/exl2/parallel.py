"""Tensor parallelism behind handles: ``make_tp_context``, the collectives, and the blocks over several shards.

One process holds all shards. A shard has a device number; on the CPU that is only a name, and all shards share the memory.
Work runs on torch's current streams, in the order of the calls, so that a barrier has nothing to do.
What differs from the original is in ``docs/compat/parallel.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args, _handles
from nybble.compat.exl2 import _layers
from nybble.compat.exl2._layers import Projection
from nybble.compat.exl2.norms import rms_norm

QUERIES = 4  # the number of the split by query heads


@dataclass(frozen=True)
class Part:
    """What one shard has of something that is split."""

    device: int
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class TpContext:
    """What a tensor-parallel context's handle stands for."""

    splits: tuple[
        tuple[Part, ...], ...
    ]  # by kind: KV heads, inner, vocabulary, hidden columns, query heads
    pinned: tuple[Tensor, ...]  # the buffers that results are gathered in

    def split(self, kind: Any, devices: int) -> list[tuple[int, Part]]:
        """The parts of a kind with their places in the lists, all or (``devices`` >= 0) those of one device."""
        number = _args.integer("broadcast_type", kind)
        if not 0 <= number < len(self.splits):
            raise RuntimeError(f"broadcast_type is {number}, expected 0 to {len(self.splits) - 1}")
        return [
            (i, part)
            for i, part in enumerate(self.splits[number])
            if devices == -1 or part.device == devices
        ]

    def buffer(self, number: Any, like: Tensor, count: int) -> Tensor:
        """The first ``count`` elements of a buffer, seen in the dtype of ``like``."""
        index = _args.integer("buffer", number)
        if not 0 <= index < len(self.pinned):
            raise RuntimeError(f"buffer is {index}, expected 0 to {len(self.pinned) - 1}")
        memory = self.pinned[index].view(-1).view(torch.uint8)
        size = count * like.element_size()
        if size > memory.numel():
            raise RuntimeError("Temporary tensor is too small")
        return memory[:size].view(like.dtype)


def make_tp_context(
    kv_split: list[tuple[int, int, int]],
    id_split: list[tuple[int, int, int]],
    vc_split: list[tuple[int, int, int]],
    rs_split: list[tuple[int, int, int]],
    q_split: list[tuple[int, int, int]],
    pinned_temp: list[Tensor],
    streams: list[int],
) -> int:
    """A handle for how a model is split.

    Args:
        kv_split, id_split, vc_split, rs_split, q_split: ``(device, begin, end)`` of each shard, one after another from 0, in KV
            heads, inner columns of the MLP, columns of the vocabulary, columns of the hidden state, query heads.
        pinned_temp: float16 buffers on the CPU, dense.
        streams: one number a device; not needed.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    given = {
        "kv_split": kv_split,
        "id_split": id_split,
        "vc_split": vc_split,
        "rs_split": rs_split,
        "q_split": q_split,
    }
    for stream in _layers.sequence("streams", streams):
        _args.integer("streams", stream)
    buffers = []
    for i, one in enumerate(_layers.sequence("pinned_temp", pinned_temp)):
        buffer = _args.contiguous(
            f"pinned_temp[{i}]", _args.dtype(f"pinned_temp[{i}]", one, "kHalf")
        )
        if buffer.device.type != "cpu":
            raise RuntimeError(f"pinned_temp[{i}] is on {buffer.device}, expected the CPU")
        buffers.append(buffer)
    context = TpContext(
        splits=tuple(_parts(name, split) for name, split in given.items()),
        pinned=tuple(buffers),
    )
    return _handles.new(context)


def free_tp_context(handle: int) -> None:
    """Forget a context; 0 is none. Raises ``RuntimeError`` for a handle that is no context's."""
    _handles.free(handle, TpContext, name="free_tp_context")


def tp_broadcast(
    tp_context: int,
    buffer: int,
    source: Tensor,
    broadcast_type: int,
    targets: list[Tensor],
    dim: int,
    t_device: int,
) -> None:
    """Copy ``source`` to the buffer and from there to every shard.

    Args:
        tp_context: from :func:`make_tp_context`.
        buffer: which of its buffers; it has the contents of ``source`` afterwards.
        source: float16, dense, any shape.
        broadcast_type: 0 KV heads, 1 inner, 2 vocabulary, 3 hidden, 4 query heads: the shards that have targets.
        targets: one a shard, float16, dense; the first elements become those of ``source``.
        dim: not needed.
        t_device: -1, or the only device whose target to fill.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    context = _handles.get(tp_context, TpContext, name="tp_broadcast")
    _args.integer("dim", dim)
    given = _args.contiguous("source", _args.dtype("source", source, "kHalf")).view(-1)
    parts = context.split(broadcast_type, _device(t_device))
    into = listed("targets", targets, context.split(broadcast_type, -1))
    starts = [_start(f"targets[{i}]", into[i], given) for i, _ in parts]
    staged = context.buffer(buffer, given, given.numel())
    ops.broadcast_([staged], given)
    ops.broadcast_(starts, staged)


def tp_gather(
    tp_context: int,
    buffer: int,
    inputs: list[Tensor],
    broadcast_type: int,
    targets: list[Tensor],
    broadcast_type_target: int,
    dim: int,
    t_device: int,
) -> None:
    """Put the shards' columns side by side in the buffer and, unless told otherwise, copy that to every shard.

    Args:
        tp_context: from :func:`make_tp_context`.
        buffer: which of its buffers; it becomes ``[M, end * dim]``, dense, with the ``end`` of the last shard.
        inputs: one a shard, ``[M, (end - begin) * dim]``, of one dtype.
        broadcast_type: of the inputs, as for :func:`tp_broadcast`.
        targets: one a shard of the target type, dense; the first elements become the buffer's.
        broadcast_type_target: the targets' type; -1 or -2: copy to none.
        dim: columns of one unit of the split.
        t_device: -1, or the only device whose columns to take and whose target to fill.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    context = _handles.get(tp_context, TpContext, name="tp_gather")
    only, unit = _device(t_device), _args.integer("dim", dim)
    every = context.split(broadcast_type, -1)
    given = listed("inputs", inputs, every)
    if not given:
        return
    M = given[0].shape[0] if given[0].dim() else 0
    for (i, part), one in zip(every, given, strict=True):
        shape, dtype = (M, (part.end - part.begin) * unit), given[0].dtype
        if one.shape != shape or one.dtype != dtype:
            raise RuntimeError(
                f"inputs[{i}] is {one.dtype} {list(one.shape)}, expected {dtype} {list(shape)}"
            )
    columns = every[-1][1].end * unit
    staged = context.buffer(buffer, given[0], M * columns)
    starts: list[Tensor] = []
    if _args.integer("broadcast_type_target", broadcast_type_target) >= 0:
        into = listed("targets", targets, context.split(broadcast_type_target, -1))
        chosen = context.split(broadcast_type_target, only)
        starts = [_start(f"targets[{i}]", into[i], staged) for i, _ in chosen]
    elif broadcast_type_target < -2:
        raise RuntimeError(f"broadcast_type_target is {broadcast_type_target}, expected -2 or more")
    for i, part in context.split(broadcast_type, only):
        staged.view(M, columns)[:, part.begin * unit : part.end * unit].copy_(given[i])
    ops.broadcast_(starts, staged)


def tp_cross_device_barrier(
    tp_context: int, broadcast_type: int, t_device: int, stage: int, next_stage: int
) -> None:
    """Nothing: work already runs in the order of the calls. Raises ``RuntimeError``, ``TypeError`` as the others do."""
    _handles.get(tp_context, TpContext, name="tp_cross_device_barrier")
    numbers = {"broadcast_type": broadcast_type, "stage": stage, "next_stage": next_stage}
    for name, value in numbers.items():
        _args.integer(name, value)
    _args.integer("t_device", t_device)


def tp_all_reduce(
    tp_context: int, buffer: int, tensors: list[Tensor], residuals: list[Tensor]
) -> None:
    """Every residual becomes ``residuals[0] + tensors[0] + tensors[1] + ...``, rounded to float16 after each sum.

    Args:
        tp_context: from :func:`make_tp_context`.
        buffer: not needed.
        tensors, residuals: one a shard, float16, of one shape; the residuals are changed in place.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    _handles.get(tp_context, TpContext, name="tp_all_reduce")
    _args.integer("buffer", buffer)
    terms = [_args.dtype("tensors", t, "kHalf") for t in _layers.sequence("tensors", tensors)]
    sums = [_args.dtype("residuals", t, "kHalf") for t in _layers.sequence("residuals", residuals)]
    if len(terms) != len(sums) or any(t.shape != sums[0].shape for t in [*terms, *sums]):
        raise RuntimeError("tensors and residuals have incompatible shapes")
    for i, (total, term) in enumerate(zip(sums, terms, strict=True)):
        if i == 0:
            total.add_(term)
        else:
            total.copy_(term)
    ops.all_reduce_(sums)


def gemm_half_q_half_tp(
    a: list[Tensor],
    b: list[int],
    c: list[Tensor],
    force_cuda: bool,
    tp_context: int,
    t_device: int,
) -> None:
    """``c[i] = a[i] @ W[i] + bias`` for every shard.

    Args:
        a: float16 ``[M, K]``, one a shard.
        b: matrices.
        c: float16 ``[M, N_i]``, written.
        force_cuda: not needed.
        tp_context: from :func:`make_tp_context`.
        t_device: -1, or the only device whose product to make. A matrix on the CPU has the device number that stands at its
            place in the context's first split of as many shards.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    context = _handles.get(tp_context, TpContext, name="gemm_half_q_half_tp")
    _args.boolean("force_cuda", force_cuda)
    only = _device(t_device)
    layers = projections("b", b)
    if not len(_layers.sequence("a", a)) == len(_layers.sequence("c", c)) == len(layers):
        raise RuntimeError("a, b and c have different lengths")
    todo = []
    for i, (x, layer, y) in enumerate(zip(a, layers, c, strict=True)):
        x, y = _args.dtype(f"a[{i}]", x, "kHalf"), _args.dtype(f"c[{i}]", y, "kHalf")
        if x.dim() != 2 or x.shape[1] != layer.matrix.K:
            raise RuntimeError(f"a[{i}] and b[{i}] have incompatible shapes")
        if y.shape != (x.shape[0], layer.matrix.N):
            raise RuntimeError(f"b[{i}] and c[{i}] have incompatible shapes")
        if only == -1 or _number(context, layers, i) == only:
            todo.append((x, layer, y))
    for x, layer, y in todo:
        y.copy_(layer(x))


def rms_norm_tp(
    x: list[Tensor], w: list[Tensor], y: list[Tensor], epsilon: float, tp_context: int
) -> None:
    """``y[i] = x[i] w[i] / sqrt(mean(x[i]^2) + epsilon)`` for every shard.

    Args:
        x, y: one a shard, float16 ``[M, D]``; y is written and may be x.
        w: one a shard, float16 ``[D]``.
        tp_context: from :func:`make_tp_context`.

    Raises ``RuntimeError`` for what does not fit, ``TypeError`` for an argument of another type.
    """
    _handles.get(tp_context, TpContext, name="rms_norm_tp")
    rows = _layers.sequence("x", x)
    weights, targets = listed("w", w, rows), listed("y", y, rows)
    for i, (one, weight, target) in enumerate(zip(rows, weights, targets, strict=True)):
        for name, value in (("x", one), ("w", weight), ("y", target)):
            _args.dtype(f"{name}[{i}]", value, "kHalf")
        rms_norm(one, weight, target, epsilon)


def _parts(name: str, split: Any) -> tuple[Part, ...]:
    parts: list[Part] = []
    for entry in _layers.sequence(name, split):
        numbers = [_args.integer(name, n) for n in _layers.sequence(name, entry)]
        end = parts[-1].end if parts else 0
        if len(numbers) != 3 or numbers[1] != end or numbers[2] < end or numbers[0] < 0:
            raise RuntimeError(
                f"{name}[{len(parts)}] is {tuple(entry)}, expected (device, {end}, end) with end >= {end}"
            )
        parts.append(Part(*numbers))
    return tuple(parts)


def _device(value: Any) -> int:
    number = _args.integer("t_device", value)
    if number < -1:
        raise RuntimeError(f"t_device is {number}, expected -1 (all) or a device")
    return number


def listed(name: str, value: Any, parts: Sequence[Any]) -> list[Tensor]:
    """Tensors of a list that has one for each part."""
    given = [_args.tensor(f"{name}[{i}]", t) for i, t in enumerate(_layers.sequence(name, value))]
    if len(given) != len(parts):
        raise RuntimeError(f"{name} has {len(given)} tensors, expected {len(parts)}, one a shard")
    return given


def _start(name: str, target: Tensor, like: Tensor) -> Tensor:
    """The first elements of a target, as many as ``like`` has."""
    if target.dtype != like.dtype or target.is_meta or target.numel() < like.numel():
        raise RuntimeError(
            f"{name} is {target.dtype} {list(target.shape)} on {target.device}, "
            f"expected {like.dtype} with {like.numel()} elements or more"
        )
    return _args.contiguous(name, target).view(-1)[: like.numel()]


def projections(name: str, handles: Any) -> list[Projection]:
    given = _layers.sequence(name, handles)
    return [_layers.projection(f"{name}[{i}]", handle) for i, handle in enumerate(given)]


def _number(context: TpContext, layers: Sequence[Projection], i: int) -> int:
    """The device number of shard ``i`` of these matrices."""
    device = layers[i].matrix.device
    if device.type != "cpu" and device.index is not None:
        return device.index
    for split in context.splits:
        if len(split) == len(layers):
            return split[i].device
    raise RuntimeError(f"no split of the context has {len(layers)} shards, as many as matrices")
