"""``ft_attention`` over nybble's ops: the old name, positional order and in-place effects."""

from __future__ import annotations

from nybble.compat.awq.attention import single_query_attention

__all__ = ["single_query_attention"]
