"""``exllamav2_ext`` over nybble's ops: the old names, positional orders and in-place effects."""

from __future__ import annotations

from nybble.compat.exl2.matrix import free_q_matrix as free_q_matrix
from nybble.compat.exl2.matrix import make_q_matrix as make_q_matrix
from nybble.compat.exl2.matrix import make_q_matrix_split as make_q_matrix_split
