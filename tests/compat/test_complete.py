"""Every name of the old modules is there and is written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nybble.compat import awq_inference_engine, exllamav2_ext, ft_attention

# As the old modules bound them; the numbers are part of their interface.
EXLLAMAV2 = """
pack_rows_4 pack_columns quantize quantize_err quantize_range quantize_range_inplace sim_anneal stloader_read
tensor_remap tensor_remap_4bit make_q_matrix make_q_matrix_split free_q_matrix reconstruct gemm_half_q_half
gemm_half_q_half_tp matrix_fp16_to_q4 matrix_q4_to_fp16 make_group_map had_paley had_paley2 apply_rep_penalty
sample_basic logit_filter_exclusive fast_fill_cpu_ones_bool fast_fadd_cpu fast_copy_cpu dump_profile_results
partial_strings_match make_q_attn free_q_attn q_attn_forward_1 q_attn_forward_2 q_attn_set_loras
tp_attn_forward_paged_ tp_attn_forward_ set_flash_attn_func make_q_mlp free_q_mlp make_q_moe_mlp
free_q_moe_mlp q_mlp_forward_ q_mlp_set_loras q_moe_mlp_forward_ tp_mlp_forward_ fp16_to_fp8 fp8_to_fp16
fp16_to_q_kv q_to_fp16_kv count_match cache_rotate gemm_half_half_half rms_norm rms_norm_ rms_norm_tp
layer_norm layer_norm_ head_norm head_norm_ rope_ gen_mrope_pos_ids softcap_ make_tp_context free_tp_context
tp_broadcast tp_gather tp_cross_device_barrier tp_all_reduce
""".split()  # noqa: SIM905
AWQ = """
layernorm_forward_cuda gemm_forward_cuda gemv_forward_cuda gemv_forward_cuda_new gemm_forward_cuda_new
rotary_embedding_neox fused_rope_with_pos_forward_func single_query_attention w8a8_gemm_forward_cuda
w8a8_gemm_fuse_bias_forward_cuda invoke_quant rms_norm_general silu_and_mul gelu_and_quant
""".split()  # noqa: SIM905
DOCS = Path(__file__).resolve().parents[2] / "docs" / "compat"


@pytest.mark.parametrize(
    ("module", "names", "count"),
    [
        (exllamav2_ext, EXLLAMAV2, 68),
        (awq_inference_engine, AWQ, 14),
        (ft_attention, ["single_query_attention"], 1),
    ],
)
def test_names(module: object, names: list[str], count: int) -> None:
    assert len(names) == count
    assert sorted(module.__all__) == sorted(names)  # type: ignore[attr-defined]
    assert all(callable(getattr(module, name)) for name in names)


def test_every_function_has_its_row() -> None:
    rows = [
        line.split("|")[1]
        for page in DOCS.glob("*.md")
        for line in page.read_text().splitlines()
        if line.count("|") > 3
    ]
    written = {name.split(".")[-1] for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert sorted(set(EXLLAMAV2 + AWQ) - written) == []
