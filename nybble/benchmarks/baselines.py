"""Other programs' 4-bit products, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from nybble.benchmarks.report import Times, measure

NEEDED = ("onnxruntime", "onnx", "numpy")
ACCURACY = 4  # activations as 8-bit integers


def missing() -> str:
    """What the baseline lacks, as a text; empty: nothing."""
    return ", ".join(name for name in NEEDED if find_spec(name) is None)


def matmul_nbits(
    size: int, group: int, rotated: int, rows: Sequence[int], threads: int, seconds: float
) -> Iterator[tuple[int, Times, int]]:
    """onnxruntime's MatMulNBits: rows, seconds a product, bytes of one matrix.

    One session runs a chain of products, each with its own matrix, so that together they read
    more than any cache holds.
    """
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    nbytes = size * size // 2 + size * (size // group) * 4
    count = max(2, -(-rotated // nbytes))
    session = onnxruntime.InferenceSession(
        _chain(size, group, count), options, providers=["CPUExecutionProvider"]
    )
    for M in rows:
        x = torch.randn(M, size).numpy()
        times = measure(partial(session.run, None, {"x0": x}), seconds)
        yield M, Times(times.median / count, times.fastest / count), nbytes


def _chain(size: int, group: int, count: int) -> bytes:
    """A model of ``count`` products ``[M, size] @ [size, size]`` in a row, random weights."""
    from onnx import TensorProto, helper  # type: ignore[import-not-found,unused-ignore]

    def constant(name: str, kind: int, shape: tuple[int, ...], values: torch.Tensor) -> Any:
        return helper.make_tensor(name, kind, shape, values.numpy().tobytes(), raw=True)

    blocks = size // group
    nodes, constants = [], []
    for i in range(count):
        codes = torch.randint(0, 256, (size * blocks * group // 2,), dtype=torch.uint8)
        scales = torch.full((size * blocks,), 0.2 / size**0.5)
        constants.append(constant(f"b{i}", TensorProto.UINT8, (size, blocks, group // 2), codes))
        constants.append(constant(f"s{i}", TensorProto.FLOAT, (size * blocks,), scales))
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [f"x{i}", f"b{i}", f"s{i}"],
                [f"x{i + 1}"],
                domain="com.microsoft",
                K=size,
                N=size,
                bits=4,
                block_size=group,
                accuracy_level=ACCURACY,
            )
        )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", size])
        for name in ("x0", f"x{count}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    return model
