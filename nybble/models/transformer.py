"""The decoder that Llama, Mistral and Qwen2 share: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.errors import RequestError
from nybble.models.config import ModelConfig
from nybble.modules.attention import Attention
from nybble.modules.before import RmsNorm
from nybble.modules.embedding import Embedding
from nybble.modules.interfaces import AttentionPlan, KVStore
from nybble.modules.linear import Linear
from nybble.modules.mlp import Mlp
from nybble.modules.rope import RopeTable


@dataclass(frozen=True)
class DecoderLayer:
    """``x += attention(x)``, then ``x += mlp(x)``."""

    attention: Attention
    mlp: Mlp

    def __call__(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        """``x`` ``[B, T, hidden]`` to a new tensor of the same shape."""
        x = self.attention(x, plan, add=x)
        return self.mlp(x, add=x)


@dataclass(frozen=True)
class Model:
    """A decoder with its weights in place. :func:`nybble.load_model` makes one."""

    config: ModelConfig
    device: torch.device
    dtype: torch.dtype  # of activations
    embedding: Embedding
    layers: Sequence[DecoderLayer]
    norm: RmsNorm
    head: Linear
    rope: RopeTable

    @property
    def nbytes(self) -> int:
        """Bytes of the linear layers' weights, which one decoded token reads."""
        blocks = [
            (x.attention.qkv, x.attention.out, x.mlp.gate_up, x.mlp.down) for x in self.layers
        ]
        return self.head.nbytes + sum(linear.nbytes for block in blocks for linear in block)

    def new_cache(self, batch: int, capacity: int) -> KVStore:
        """An empty cache for ``batch`` sequences of up to ``capacity`` tokens each.

        Raises:
            RequestError: a size is not positive, or ``capacity`` is beyond the model's context.
        """
        from nybble.cache.flat import (
            FlatCache,
        )  # cache/ stands beside models/: no import between them on loading

        if capacity > self.config.max_positions:
            raise RequestError(
                f"cache: capacity {capacity}, but the model's context is "
                f"{self.config.max_positions} tokens"
            )
        return FlatCache(
            layers=self.config.layers,
            batch=batch,
            capacity=capacity,
            kv_heads=self.config.kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(
        self, input_ids: Tensor, cache: KVStore | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits of the token that follows each of ``input_ids``.

        Args:
            input_ids: int64 ``[B, T]``, each in ``[0, vocab_size)``. With a cache they follow what
                it holds, each row
                at its own length.
            cache: of ``B`` sequences; takes the ``T`` tokens in. None: the tokens start a text and
                nothing is kept.
            last_only: compute the last token's logits only.

        Returns:
            float32 ``[B, T, V]``, or ``[B, 1, V]`` with ``last_only``.

        Raises:
            RequestError: ids of a wrong shape, dtype or range; more tokens than the cache or the
                context holds.

        Example: ``model.forward(torch.tensor([[1, 2, 3]]), last_only=True).argmax(-1)`` is the next
            token, greedily.
        """
        self._check_ids(input_ids)
        with torch.inference_mode():
            ids = input_ids.to(self.device)
            plan = self._plan(ids, cache)
            x = self.embedding(ids)
            for layer in self.layers:
                x = layer(x, plan)
            if cache is not None:
                cache.advance(ids.shape[1])
            if last_only:
                x = x[:, -1:]
            return self.head(x, self.norm).float()

    def _plan(self, ids: Tensor, cache: KVStore | None) -> AttentionPlan:
        """Positions of the tokens, and the rope tables up to the last."""
        B, T = ids.shape
        longest = T
        if cache is None:
            positions = torch.arange(T).repeat(B, 1)
        else:
            lengths = cache.lengths
            if len(lengths) != B:
                raise RequestError(
                    f"forward: input_ids has {B} rows, but the cache holds {len(lengths)} sequences"
                )
            positions = lengths[:, None] if T == 1 else lengths[:, None] + torch.arange(T)
            longest += int(lengths.max())
            if longest > cache.capacity:
                raise RequestError(
                    f"forward: {longest} tokens in a sequence, but the cache's capacity is "
                    f"{cache.capacity}; "
                    "make the cache larger or the text shorter"
                )
        if longest > self.config.max_positions:
            raise RequestError(
                f"forward: {longest} tokens in a sequence, but the model's context is "
                f"{self.config.max_positions}; "
                "shorten the text"
            )
        cos, sin = self.rope.upto(longest)
        return AttentionPlan(cos, sin, positions.to(self.device), cache)

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dtype != torch.int64 or ids.dim() != 2 or 0 in ids.shape:
            raise RequestError(
                f"forward: input_ids is {ids.dtype} {list(ids.shape)}, expected torch.int64 "
                "[B, T] with B, T >= 1"
            )
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            raise RequestError(
                f"forward: input_ids has ids from {low} to {high}, expected 0 to "
                f"{self.config.vocab_size - 1}; "
                "is the tokenizer this model's?"
            )
