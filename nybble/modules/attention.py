"""Grouped-query attention with rotary positions and a key-value store."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nybble import ops
from nybble.modules.before import RmsNorm
from nybble.modules.interfaces import AttentionPlan
from nybble.modules.linear import Linear


@dataclass(frozen=True)
class Attention:
    """``y = out(attention(rope(q), rope(k), v))`` with ``q, k, v = qkv(norm(x))``; causal, each query
    sees ``window`` keys."""

    norm: RmsNorm
    qkv: Linear  # three outputs: H * D, Hk * D, Hk * D
    out: Linear
    layer: int  # which layer of the store is ours
    heads: int  # H
    kv_heads: int  # Hk
    head_dim: int  # D
    window: int  # 0: every key

    def __call__(self, x: Tensor, plan: AttentionPlan, add: Tensor) -> Tensor:
        """``x`` ``[B, T, hidden]`` to ``y + add`` of the same shape; the tokens' keys and values go to ``plan.cache``."""
        qkv = self.qkv(x, self.norm)
        rope = plan.cos, plan.sin, plan.positions
        if plan.cache is not None:
            slots = plan.cache.slots(self.layer, x.shape[1])
            y = ops.cached_attention_(qkv.contiguous(), rope, slots, window=self.window)
            return self.out(y, None, add)
        H, Hk = self.heads, self.kv_heads
        heads = qkv.unflatten(2, (H + 2 * Hk, self.head_dim))
        ops.rope_(heads[:, :, : H + Hk], *rope)
        q, k, v = heads.split([H, Hk, Hk], dim=2)
        return self.out(ops.attention(q, k, v, None, window=self.window).flatten(2), None, add)
