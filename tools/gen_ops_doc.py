"""Writes docs/ops.md from the op list, the wrappers' docstrings and the tables in docs/compat/: python tools/gen_ops_doc.py"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from nybble import ops
from nybble.ops import _schema

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Ops

Made by `python tools/gen_ops_doc.py`. Every op is `nybble.ops.NAME`, and `torch.ops.nybble.NAME` below it. Each runs on the
PyTorch reference where its device has no kernel. Old names: the functions of `exllamav2_ext`, `awq_inference_engine` and
`ft_attention` that it serves in `nybble.compat` ([compat.md](compat.md)).

| op | meaning | CPU | CUDA | old names |
|---|---|---|---|---|"""


def old_names() -> dict[str, list[str]]:
    """Op to the old functions whose rows in docs/compat/ name it."""
    served: dict[str, list[str]] = {}
    for page in sorted((ROOT / "docs" / "compat").glob("*.md")):
        above: list[str] = []
        for line in page.read_text().splitlines():
            cells = line.split("|")
            if len(cells) < 4 or not cells[1].strip().startswith("`"):
                continue
            functions = re.findall(r"`([\w.]+)`", cells[1])
            named = [name.removeprefix("ops.") for name in re.findall(r"`([\w.]+)`", cells[2])]
            above = named or (above if cells[2].strip() == "the same" else [])
            for op in dict.fromkeys(above):
                served.setdefault(op, []).extend(functions)
    return served


def render() -> str:
    """A table with one row an op, then each op's schema and docstring: formula, shapes, dtypes, errors, example."""
    cuda = (ROOT / "csrc" / "binding" / "library.cpp").read_text().split("void cuda_ops")[1]
    served = old_names()
    rows, sections = [], []
    for name in sorted(_schema.SCHEMAS):
        text = inspect.getdoc(getattr(ops, name)) or ""
        meaning = " ".join(text.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
        meaning = re.sub(r":func:`(\w+)`", r"`\1`", meaning)
        where = "native" if f'"{name}"' in cuda else "reference"
        old = ", ".join(f"`{x}`" for x in dict.fromkeys(served.get(name, [])))
        rows.append(f"| [`{name}`](#{name}) | {meaning} | native | {where} | {old} |")
        sections.append(f"## {name}\n\n```\n{name}{_schema.SCHEMAS[name]}\n\n{text}\n```")
    return "\n".join([HEAD, *rows, "", "\n\n".join(sections), ""])


if __name__ == "__main__":
    (ROOT / "docs" / "ops.md").write_text(render())
