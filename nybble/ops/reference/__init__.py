"""The meaning of every op in plain PyTorch: slow, on any device, in float32 inside.

Each function has its op's name and its schema's arguments. It also serves every device that has no kernel of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nybble.ops.reference.attention import attention
from nybble.ops.reference.embedding import embedding
from nybble.ops.reference.gate import gelu_mul, silu_mul
from nybble.ops.reference.matmul import matmul
from nybble.ops.reference.moe import moe_route
from nybble.ops.reference.norm import layer_norm, layer_norm_, rms_norm, rms_norm_
from nybble.ops.reference.qmatmul import qmatmul
from nybble.ops.reference.rope import rope_
from nybble.ops.reference.sample import repetition_penalty_, sample
from nybble.ops.reference.softcap import softcap_

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "qmatmul": qmatmul,
    "matmul": matmul,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "rms_norm_": rms_norm_,
    "layer_norm_": layer_norm_,
    "softcap_": softcap_,
    "rope_": rope_,
    "attention": attention,
    "silu_mul": silu_mul,
    "gelu_mul": gelu_mul,
    "moe_route": moe_route,
    "embedding": embedding,
    "sample": sample,
    "repetition_penalty_": repetition_penalty_,
}
