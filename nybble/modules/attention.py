"""Grouped-query attention with rotary positions and a key-value store."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nybble import ops
from nybble.modules.interfaces import AttentionPlan
from nybble.modules.linear import Linear


@dataclass(frozen=True)
class Attention:
    """``y = out(attention(rope(q), rope(k), v))`` with ``q, k, v = qkv(x)``; causal, each query
    sees ``window`` keys."""

    qkv: Linear  # three outputs: H * D, Hk * D, Hk * D
    out: Linear
    layer: int  # which layer of the store is ours
    heads: int  # H
    kv_heads: int  # Hk
    head_dim: int  # D
    window: int  # 0: every key

    def __call__(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        """``x`` ``[B, T, hidden]`` to the same shape; the tokens' keys and values are appended to
        ``plan.cache``."""
        q, k, v = self._project(x, plan)
        lengths = None
        if plan.cache is not None:
            k, v, lengths = plan.cache.append(self.layer, k, v)
        y = ops.attention(q, k, v, lengths, window=self.window)
        return self.out(y.flatten(2))

    def _project(self, x: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
        """``q`` ``[B, T, H, D]``, ``k``, ``v`` ``[B, T, Hk, D]``, positions applied."""
        B, T, _ = x.shape
        H, Hk, D = self.heads, self.kv_heads, self.head_dim
        if self.qkv.is_one_product:  # q and k lie side by side: one rope for both
            y = self.qkv(x).view(B, T, H + 2 * Hk, D)
            ops.rope_(y[:, :, : H + Hk], plan.cos, plan.sin, plan.positions)
            return y[:, :, :H], y[:, :, H : H + Hk], y[:, :, H + Hk :]
        q, k, v = self.qkv.parts(x)
        q, k, v = q.view(B, T, H, D), k.view(B, T, Hk, D), v.view(B, T, Hk, D)
        ops.rope_(q, plan.cos, plan.sin, plan.positions)
        ops.rope_(k, plan.cos, plan.sin, plan.positions)
        return q, k, v
