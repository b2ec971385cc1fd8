"""``ft_attention`` over nybble's ops: the old name, positional order and in-place effects."""

from __future__ import annotations
