"""``exllamav2_ext`` over nybble's ops: the old names, positional orders and in-place effects."""

from __future__ import annotations

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
