"""``exllamav2_ext`` over nybble's ops: the old names, positional orders and in-place effects."""

from __future__ import annotations
