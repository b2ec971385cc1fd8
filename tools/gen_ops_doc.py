"""Writes docs/ops.md from the op list: python tools/gen_ops_doc.py"""

from __future__ import annotations

from pathlib import Path

from nybble import ops
from nybble.ops import _schema

ROOT = Path(__file__).resolve().parents[1]


def render() -> str:
    """One row an op: its schema and the first line of the wrapper's docstring."""
    cuda = (ROOT / "csrc" / "binding" / "library.cpp").read_text().split("nybble, CUDA, m")[1]
    lines = [
        "# Ops",
        "",
        "Made by `python tools/gen_ops_doc.py`. Every op is `nybble.ops.NAME`, and `torch.ops.nybble.NAME` below it; the",
        "wrapper's docstring is the contract. Each runs on the PyTorch reference where its device has no kernel.",
        "",
        "| op | meaning | CPU | CUDA |",
        "|---|---|---|---|",
    ]
    for name in sorted(_schema.SCHEMAS):
        meaning = (
            (getattr(ops, name).__doc__ or "")
            .strip()
            .splitlines()[0]
            .replace("``", "`")
            .replace("|", "\\|")
        )
        where = "native" if f'"{name}"' in cuda else "reference"
        lines.append(f"| `{name}` | {meaning} | native | {where} |")
    lines += ["", "## Schemas", "", "```"]
    lines += [f"{name}{schema}" for name, schema in sorted(_schema.SCHEMAS.items())]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "ops.md").write_text(render())
