"""The ops: typed functions over ``torch.ops.nybble``. The first call loads the native library, or the reference.

>>> import torch
>>> from nybble import ops
>>> ops.rms_norm(torch.ones(1, 4), torch.full((4,), 2.0), eps=0.0)
tensor([[2., 2., 2., 2.]])
"""

from nybble.ops.attention import attention
from nybble.ops.embedding import embedding
from nybble.ops.gate import gelu_mul, silu_mul
from nybble.ops.lora import lora_add_
from nybble.ops.matmul import matmul
from nybble.ops.moe import moe_apply, moe_route
from nybble.ops.mrope import VisionSpan, mrope_positions
from nybble.ops.norm import layer_norm, layer_norm_, rms_norm, rms_norm_
from nybble.ops.packed import PackedMatrix
from nybble.ops.qmatmul import qmatmul
from nybble.ops.rope import rope_
from nybble.ops.sample import repetition_penalty_, sample
from nybble.ops.shards import all_reduce_, broadcast_, gather_columns_
from nybble.ops.softcap import softcap_

__all__ = [
    "PackedMatrix",
    "VisionSpan",
    "all_reduce_",
    "attention",
    "broadcast_",
    "embedding",
    "gather_columns_",
    "gelu_mul",
    "layer_norm",
    "layer_norm_",
    "lora_add_",
    "matmul",
    "moe_apply",
    "moe_route",
    "mrope_positions",
    "qmatmul",
    "repetition_penalty_",
    "rms_norm",
    "rms_norm_",
    "rope_",
    "sample",
    "silu_mul",
    "softcap_",
]
