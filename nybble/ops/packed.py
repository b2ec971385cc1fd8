"""The packed matrix: one description and one byte layout for EXL2, GPTQ and AWQ weights.

A matrix ``[K, N]`` is stored as *packed rows*: rows sorted so that every run of 32 (a *k block*) has one width and one
scale group; padding rows carry code 0 and gather index -1. Columns go in blocks of 16. One tile, 32 rows of 16 columns
at ``bits`` bits, is ``64 * bits`` bytes, in the order of the device it lies on (:mod:`nybble.ops.tiles`). The tiles of a
column block follow each other in row order, the column blocks in column order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nybble.ops.tiles import COLUMNS, ROWS, pack_tiles, unpack_tiles

_CODES_AT_ONCE = 1 << 26  # bytes of codes that a change of order unfolds at a time


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized matrix, ``W[perm[k], n] = (code[k, n] - zero[g, n]) * scale[g, n]`` with ``g = blocks[k // 32, 1]``."""

    K: int  # inputs
    N: int  # outputs
    weight: Tensor  # uint8 [ceil(N/16) * sum(64 * bits of each k block)]
    scales: Tensor  # float16 [ceil(N/16), G, 16]
    blocks: Tensor  # int32 [KB, 2] on the CPU: bits and scale group of each k block
    zeros: Tensor | None = None  # float32 [ceil(N/16), G, 16]; None: 2^(bits-1)
    perm: Tensor | None = (
        None  # int32 [KB*32]: input feature of each packed row, -1 for padding; None: identity
    )
    bias: Tensor | None = None  # [N]

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        parts = (self.weight, self.scales, self.zeros, self.perm, self.bias)
        return sum(t.nbytes for t in parts if t is not None)

    def to(self, device: torch.device | str) -> PackedMatrix:
        """The same matrix with its tensors (all but ``blocks``) on ``device``, the tiles in that device's order."""

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        return replace(
            self,
            weight=_weight_to(self, torch.device(device)),
            scales=self.scales.to(device),
            zeros=move(self.zeros),
            perm=move(self.perm),
            bias=move(self.bias),
        )


def pack_codes(codes: Tensor, blocks: Tensor) -> Tensor:
    """Write ``codes`` uint8 ``[KB*32, N]`` in the packed layout; returns uint8 ``[bytes]``.

    >>> codes = torch.randint(0, 16, (64, 16), dtype=torch.uint8)
    >>> blocks = torch.tensor([[4, 0], [4, 1]], dtype=torch.int32)
    >>> torch.equal(unpack_codes(pack_codes(codes, blocks), blocks, 16), codes)
    True
    """
    rows, N = codes.shape
    KB, NB = rows // ROWS, -(-N // COLUMNS)
    padded = torch.nn.functional.pad(codes, (0, NB * COLUMNS - N))
    all_tiles = padded.view(KB, ROWS, NB, COLUMNS).permute(2, 0, 1, 3)  # [NB, KB, 32, 16]
    runs = [pack_tiles(all_tiles[:, run.start : run.stop], bits) for run, bits in _runs(blocks)]
    if not runs:
        return codes.new_empty(0)
    return torch.cat([tiles.flatten(1) for tiles in runs], dim=1).flatten()


def _runs(blocks: Tensor) -> list[tuple[range, int]]:
    """Neighbouring k blocks of one width: which, and the width."""
    widths, counts = torch.unique_consecutive(blocks[:, 0], return_counts=True)
    found, start = [], 0
    for bits, count in zip(widths.tolist(), counts.tolist(), strict=True):
        found.append((range(start, start + count), bits))
        start += count
    return found


def _column_blocks(weight: Tensor, blocks: Tensor, N: int) -> Tensor:
    """The bytes as one row a column block."""
    return weight.view(-(-N // COLUMNS), int(blocks[:, 0].sum()) * 64)


def unpack_codes(weight: Tensor, blocks: Tensor, N: int) -> Tensor:
    """The inverse of :func:`pack_codes`: uint8 ``[KB*32, N]``."""
    rows = _column_blocks(weight, blocks, N)
    NB, KB = rows.shape[0], blocks.shape[0]
    out = torch.empty(KB, ROWS, NB, COLUMNS, dtype=torch.uint8, device=weight.device)
    start = 0
    for run, bits in _runs(blocks):
        size = 64 * bits * len(run)
        tiles = rows[:, start : start + size].reshape(NB, len(run), 64 * bits)
        out[run.start : run.stop] = unpack_tiles(tiles, bits).permute(1, 2, 0, 3)
        start += size
    return out.view(KB * ROWS, NB * COLUMNS)[:, :N].contiguous()


def _weight_to(m: PackedMatrix, device: torch.device) -> Tensor:
    """The tiles on ``device``: column blocks are unfolded to codes and folded again, some at a time."""
    if m.weight.is_cuda == (device.type == "cuda"):
        return m.weight.to(device)
    rows = _column_blocks(m.weight, m.blocks, m.N)
    out = torch.empty(m.weight.shape, dtype=torch.uint8, device=device)
    at_once = max(1, _CODES_AT_ONCE // max(1, m.blocks.shape[0] * ROWS * COLUMNS))
    for some, to in zip(
        rows.split(at_once), _column_blocks(out, m.blocks, m.N).split(at_once), strict=True
    ):
        codes = unpack_codes(some.flatten(), m.blocks, some.shape[0] * COLUMNS)
        to.copy_(pack_codes(codes.to(device), m.blocks).view(to.shape))
    return out


def group_columns(values: Tensor) -> Tensor:
    """``[G, N]`` to the kernel's ``[ceil(N/16), G, 16]``, padded with zeros."""
    G, N = values.shape
    NB = -(-N // COLUMNS)
    padded = torch.nn.functional.pad(values, (0, NB * COLUMNS - N))
    return padded.view(G, NB, COLUMNS).permute(1, 0, 2).contiguous()


def ungroup_columns(values: Tensor, N: int) -> Tensor:
    """The inverse of :func:`group_columns`: ``[G, N]``."""
    NB, G, _ = values.shape
    return values.permute(1, 0, 2).reshape(G, NB * COLUMNS)[:, :N].contiguous()


def make_packed(
    codes: Tensor,
    scales: Tensor,
    bits: Tensor,
    groups: Tensor,
    *,
    zeros: Tensor | None = None,
    perm: Tensor | None = None,
    bias: Tensor | None = None,
) -> PackedMatrix:
    """Build a packed matrix from rows in any number per group, padding each run of one group to whole k blocks.

    Args:
        codes: uint8 ``[K, N]``, rows in packed order, so that the rows of a group follow each other.
        scales: float16 ``[G, N]``.
        bits: int ``[G]``, width of each group.
        groups: int ``[K]``, group of each packed row, each group in one run.
        zeros: float32 ``[G, N]`` or None for ``2^(bits-1)``.
        perm: int ``[K]``, input feature of each packed row, or None for identity.
        bias: ``[N]`` or None.
    """
    K, N = codes.shape
    run_groups, counts = torch.unique_consecutive(groups.cpu().long(), return_counts=True)
    kbs = (counts + ROWS - 1) // ROWS
    block_group = torch.repeat_interleave(run_groups, kbs)
    blocks = torch.stack([bits.cpu().long()[block_group], block_group], dim=1).to(torch.int32)
    if (
        bool((counts == kbs * ROWS)[:-1].all()) and perm is None
    ):  # only the last run is short: identity still holds
        padded = torch.nn.functional.pad(codes, (0, 0, 0, int(kbs.sum()) * ROWS - K))
        full_perm = None
    else:
        starts = torch.cat([torch.zeros(1, dtype=torch.long), (kbs * ROWS).cumsum(0)[:-1]])
        offset = torch.arange(K) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        place = torch.repeat_interleave(starts, counts) + offset
        padded = torch.zeros(int(kbs.sum()) * ROWS, N, dtype=torch.uint8)
        padded[place] = codes
        full_perm = torch.full((padded.shape[0],), -1, dtype=torch.int32)
        full_perm[place] = (
            torch.arange(K, dtype=torch.int32) if perm is None else perm.to(torch.int32)
        )
    return PackedMatrix(
        K=K,
        N=N,
        weight=pack_codes(padded, blocks),
        scales=group_columns(scales.to(torch.float16)),
        blocks=blocks,
        zeros=None if zeros is None else group_columns(zeros.float()),
        perm=full_perm,
        bias=bias,
    )


def dequantize(matrix: PackedMatrix) -> Tensor:
    """``W`` float32 ``[K, N]`` in input order: ``W[perm[k]] = (code[k] - zero) * scale``, without rounding."""
    codes = unpack_codes(matrix.weight, matrix.blocks, matrix.N).float()
    group = matrix.blocks[:, 1].long().repeat_interleave(ROWS).to(codes.device)
    half = (1 << (matrix.blocks[:, 0].long() - 1)).repeat_interleave(ROWS).to(codes.device)
    scale = ungroup_columns(matrix.scales, matrix.N).float()[group]
    zero = (
        half[:, None].float()
        if matrix.zeros is None
        else ungroup_columns(matrix.zeros, matrix.N)[group]
    )
    rows = (codes - zero) * scale
    if matrix.perm is None:
        return rows[: matrix.K].contiguous()
    out = torch.zeros(matrix.K, matrix.N, device=rows.device)
    real = matrix.perm >= 0
    out[matrix.perm[real].long()] = rows[real]
    return out
