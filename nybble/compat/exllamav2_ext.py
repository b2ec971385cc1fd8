"""``exllamav2_ext`` over nybble's ops: the old names, positional orders and in-place effects."""

from __future__ import annotations

from nybble.compat.exl2.loader import stloader_read as stloader_read
from nybble.compat.exl2.quantize import had_paley as had_paley
from nybble.compat.exl2.quantize import had_paley2 as had_paley2
from nybble.compat.exl2.quantize import pack_columns as pack_columns
from nybble.compat.exl2.quantize import pack_rows_4 as pack_rows_4
from nybble.compat.exl2.quantize import quantize as quantize
from nybble.compat.exl2.quantize import quantize_err as quantize_err
from nybble.compat.exl2.quantize import quantize_range as quantize_range
from nybble.compat.exl2.quantize import quantize_range_inplace as quantize_range_inplace
from nybble.compat.exl2.quantize import sim_anneal as sim_anneal
from nybble.compat.exl2.cache import (
    cache_rotate,
    count_match,
    fp8_to_fp16,
    fp16_to_fp8,
    fp16_to_q_kv,
    q_to_fp16_kv,
)
from nybble.compat.exl2.matrix import (
    free_q_matrix,
    gemm_half_half_half,
    gemm_half_q_half,
    make_group_map,
    make_q_matrix,
    make_q_matrix_split,
    matrix_fp16_to_q4,
    matrix_q4_to_fp16,
    reconstruct,
    tensor_remap,
    tensor_remap_4bit,
)
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
from nybble.compat.exl2.parallel import free_tp_context as free_tp_context
from nybble.compat.exl2.parallel import gemm_half_q_half_tp as gemm_half_q_half_tp
from nybble.compat.exl2.parallel import make_tp_context as make_tp_context
from nybble.compat.exl2.parallel import rms_norm_tp as rms_norm_tp
from nybble.compat.exl2.parallel import tp_all_reduce as tp_all_reduce
from nybble.compat.exl2.parallel import tp_broadcast as tp_broadcast
from nybble.compat.exl2.parallel import tp_cross_device_barrier as tp_cross_device_barrier
from nybble.compat.exl2.parallel import tp_gather as tp_gather
from nybble.compat.exl2.parallel_attention import tp_attn_forward_ as tp_attn_forward_
from nybble.compat.exl2.parallel_attention import tp_attn_forward_paged_ as tp_attn_forward_paged_
from nybble.compat.exl2.parallel_blocks import tp_mlp_forward_ as tp_mlp_forward_
from nybble.compat.exl2.rope import gen_mrope_pos_ids, rope_

__all__ = [
    "cache_rotate",
    "count_match",
    "fp8_to_fp16",
    "fp16_to_fp8",
    "fp16_to_q_kv",
    "free_q_matrix",
    "gemm_half_half_half",
    "gemm_half_q_half",
    "gen_mrope_pos_ids",
    "head_norm",
    "head_norm_",
    "layer_norm",
    "layer_norm_",
    "make_group_map",
    "make_q_matrix",
    "make_q_matrix_split",
    "matrix_fp16_to_q4",
    "matrix_q4_to_fp16",
    "q_to_fp16_kv",
    "reconstruct",
    "rms_norm",
    "rms_norm_",
    "rope_",
    "softcap_",
    "tensor_remap",
    "tensor_remap_4bit",
]
from nybble.compat.exl2.sampling import (  # noqa: F401
    apply_rep_penalty,
    dump_profile_results,
    fast_copy_cpu,
    fast_fadd_cpu,
    fast_fill_cpu_ones_bool,
    logit_filter_exclusive,
    partial_strings_match,
    sample_basic,
    set_flash_attn_func,
)
