"""The plain store: one tensor of keys and one of values a layer, a fixed capacity a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nybble.errors import RequestError


@dataclass
class _Clock:
    """Counts changes of the lengths, for all views of one storage."""

    now: int = 0


@dataclass(frozen=True)
class _Step:
    """How long the sequences are after one step, worked out in the first layer and used in all."""

    T: int
    clock: int
    after: Tensor  # i64 [B], tokens of each after the step, on the device of the storage


class FlatCache:
    """A :class:`~nybble.modules.interfaces.KVStore` with ``k``, ``v`` ``[layers, B, Hk, capacity,
    D]`` in ``dtype``.

    The tokens of one head follow each other in memory, so that attention reads each head in one
    run.

    >>> cache = FlatCache(layers=1, batch=2, capacity=8, kv_heads=1, head_dim=4)
    >>> keys, values, lengths = cache.slots(0, 3)
    >>> cache.advance(3)
    >>> keys.shape, lengths, cache.lengths
    (torch.Size([2, 1, 8, 4]), tensor([3, 3]), tensor([3, 3]))
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Room for ``batch`` sequences of ``capacity`` tokens each.

        Raises:
            RequestError: a size is not positive.
        """
        sizes = {
            "layers": layers,
            "batch": batch,
            "capacity": capacity,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise RequestError(f"cache: {name} is {size}, expected at least 1")
        shape = (layers, batch, kv_heads, capacity, head_dim)
        # Zeroed lazily by the system: pages that no token reaches cost nothing.
        k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self._attach(k, v, torch.zeros(batch, dtype=torch.int64), _Clock())

    def _attach(self, k: Tensor, v: Tensor, lengths: Tensor, clock: _Clock) -> None:
        self._k, self._v, self._lengths, self._clock = k, v, lengths, clock
        self._k_layers, self._v_layers = k.unbind(0), v.unbind(0)  # [B, Hk, capacity, D]
        self._step: _Step | None = None

    @property
    def lengths(self) -> Tensor:
        """int64 ``[B]`` on the CPU: tokens held of each sequence."""
        return self._lengths

    @property
    def capacity(self) -> int:
        """Tokens that fit in one sequence."""
        return self._k.shape[3]

    @property
    def batch(self) -> int:
        """Sequences."""
        return self._k.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values at full length."""
        return self._k.nbytes + self._v.nbytes

    def slots(self, layer: int, T: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where ``T`` new tokens of each sequence go; see :class:`KVStore`."""
        step = self._step
        if step is None or T != step.T or step.clock != self._clock.now:
            step = self._step = self._plan(T)
        return self._k_layers[layer], self._v_layers[layer], step.after

    def _plan(self, T: int) -> _Step:
        longest = int(self._lengths.max()) + T
        if longest > self.capacity:
            raise RequestError(
                f"cache: {longest} tokens in a sequence, but the capacity is {self.capacity}; "
                "make the cache larger or the text shorter"
            )
        return _Step(T, self._clock.now, (self._lengths + T).to(self._k.device))

    def advance(self, T: int) -> None:
        """Count the ``T`` tokens that every layer has taken in."""
        self._lengths += T
        self._clock.now += 1

    def rows(self, start: int, stop: int) -> FlatCache:
        """Sequences ``start`` to ``stop - 1`` over the same storage; what one writes, the other
        holds.

        Raises:
            RequestError: the range is empty or outside the batch.
        """
        if not 0 <= start < stop <= self.batch:
            raise RequestError(
                f"cache: rows {start} to {stop} of a cache of {self.batch} sequences"
            )
        view = FlatCache.__new__(FlatCache)
        view._attach(
            self._k[:, start:stop], self._v[:, start:stop], self._lengths[start:stop], self._clock
        )
        return view

    def truncate(self, row: int, length: int) -> None:
        """Forget what sequence ``row`` holds beyond ``length`` tokens.

        Raises:
            RequestError: no such row, or ``length`` is more than the row holds.
        """
        self._check_row(row)
        held = int(self._lengths[row])
        if not 0 <= length <= held:
            raise RequestError(
                f"cache: cannot truncate row {row} to {length} tokens, it holds {held}"
            )
        self._lengths[row] = length
        self._clock.now += 1

    def copy_row(self, src: int, dst: int) -> None:
        """Make sequence ``dst`` hold what ``src`` holds.

        Raises:
            RequestError: no such row.
        """
        self._check_row(src)
        self._check_row(dst)
        held = slice(0, int(self._lengths[src]))
        self._k[:, dst, :, held] = self._k[:, src, :, held]
        self._v[:, dst, :, held] = self._v[:, src, :, held]
        self._lengths[dst] = self._lengths[src]
        self._clock.now += 1

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.batch:
            raise RequestError(f"cache: there is no row {row} in a cache of {self.batch} sequences")
