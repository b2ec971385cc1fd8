"""``exllamav2_ext`` over nybble's ops: the old names, positional orders and in-place effects."""

from __future__ import annotations

from nybble.compat.exl2.attention import free_q_attn as free_q_attn
from nybble.compat.exl2.attention import make_q_attn as make_q_attn
from nybble.compat.exl2.attention import q_attn_forward_1 as q_attn_forward_1
from nybble.compat.exl2.attention import q_attn_forward_2 as q_attn_forward_2
from nybble.compat.exl2.attention import q_attn_set_loras as q_attn_set_loras
from nybble.compat.exl2.matrix import free_q_matrix as free_q_matrix
from nybble.compat.exl2.matrix import make_q_matrix as make_q_matrix
from nybble.compat.exl2.matrix import make_q_matrix_split as make_q_matrix_split
from nybble.compat.exl2.mlp import free_q_mlp as free_q_mlp
from nybble.compat.exl2.mlp import free_q_moe_mlp as free_q_moe_mlp
from nybble.compat.exl2.mlp import make_q_mlp as make_q_mlp
from nybble.compat.exl2.mlp import make_q_moe_mlp as make_q_moe_mlp
from nybble.compat.exl2.mlp import q_mlp_forward_ as q_mlp_forward_
from nybble.compat.exl2.mlp import q_mlp_set_loras as q_mlp_set_loras
from nybble.compat.exl2.mlp import q_moe_mlp_forward_ as q_moe_mlp_forward_
from nybble.compat.exl2.norms import (
    head_norm,
    head_norm_,
    layer_norm,
    layer_norm_,
    rms_norm,
    rms_norm_,
    softcap_,
)
from nybble.compat.exl2.rope import gen_mrope_pos_ids, rope_

__all__ = [
    "gen_mrope_pos_ids",
    "head_norm",
    "head_norm_",
    "layer_norm",
    "layer_norm_",
    "rms_norm",
    "rms_norm_",
    "rope_",
    "softcap_",
]
