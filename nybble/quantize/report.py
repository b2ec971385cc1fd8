"""What a quantization did, layer by layer: for the terminal and for report.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LayerReport:
    """One matrix."""

    key: str
    shape: tuple[int, int]  # K, N
    bits: float  # stored bits a weight, scales and row order included
    widths: dict[str, int]  # rows of each width
    error: float  # |W - W'| / |W|, Frobenius


@dataclass(frozen=True)
class Report:
    """A finished job."""

    method: str
    target: float
    head_bits: int
    group_size: int
    layers: tuple[LayerReport, ...]
    kept: tuple[str, ...]  # matrices left in half precision
    bytes: int  # of the tensors written
    source_bytes: int
    seconds: float

    @property
    def bits(self) -> float:
        """Stored bits a weight over all matrices but the head, which the target does not count."""
        body = [layer for layer in self.layers if layer.key != "lm_head"]
        numel = sum(layer.shape[0] * layer.shape[1] for layer in body)
        return sum(layer.bits * layer.shape[0] * layer.shape[1] for layer in body) / max(1, numel)

    def to_dict(self) -> dict[str, Any]:
        """For report.json."""
        return {"bits": self.bits, **asdict(self)}

    def table(self) -> Table:
        """For the terminal: one line a kind of matrix, and the worst layer of it."""
        from rich.table import Table

        table = Table(
            title=f"{self.bits:.3f} bits a weight ({self.method}), {self.bytes / 1e6:.1f} MB"
        )
        for name in ("matrix", "layers", "bits", "error", "worst layer", "its error"):
            table.add_column(name, justify="left" if name in ("matrix", "worst layer") else "right")
        kinds: dict[str, list[LayerReport]] = {}
        for layer in self.layers:
            kinds.setdefault(layer.key.rsplit(".", 1)[-1], []).append(layer)
        for kind, layers in kinds.items():
            worst = max(layers, key=lambda layer: layer.error)
            bits = sum(layer.bits for layer in layers) / len(layers)
            error = sum(layer.error for layer in layers) / len(layers)
            table.add_row(
                kind,
                str(len(layers)),
                f"{bits:.2f}",
                f"{error:.2%}",
                worst.key,
                f"{worst.error:.2%}",
            )
        for key in self.kept:
            table.add_row(key, "1", "16", "0%", "inputs are no multiple of 32", "")
        return table
