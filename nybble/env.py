"""Every environment variable nybble reads: name, type, default, meaning. Nothing else in the package looks at ``os.environ``.

>>> import nybble.env as env
>>> env.integer("NYBBLE_ACT_BITS")
16
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

Kind = Literal["flag", "integer", "text", "path"]
TRUE = ("1", "true", "yes", "on")
FALSE = ("0", "false", "no", "off")


@dataclass(frozen=True)
class Variable:
    """One row of the table.

    ``aliases`` are older names; the first set one counts when ``name`` itself is unset. They count by being present, whatever
    their value, because that is how the programs that use them read them.
    """

    name: str
    kind: Kind
    default: str | None
    help: str
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


TABLE: tuple[Variable, ...] = (
    Variable(
        "NYBBLE_NOCOMPILE",
        "flag",
        "0",
        "Never compile: pip installs pure Python, and first use takes a library that exists or the PyTorch reference.",
        aliases=("EXLLAMA_NOCOMPILE",),
    ),
    Variable(
        "NYBBLE_VERBOSE",
        "flag",
        "0",
        "Show the compiler's own output while building, and the full traceback of an error.",
        aliases=("EXLLAMA_VERBOSE",),
    ),
    Variable(
        "NYBBLE_EXT_DEBUG",
        "flag",
        "0",
        "Build with device-side assertions, debug information and compile time reports.",
        aliases=("EXLLAMA_EXT_DEBUG",),
    ),
    Variable(
        "NYBBLE_FORCE_REFERENCE",
        "flag",
        "0",
        "Use the PyTorch reference of every op; load no native library.",
    ),
    Variable(
        "NYBBLE_CACHE_DIR",
        "path",
        None,
        "Folder for built libraries. Default: nybble in XDG_CACHE_HOME, LOCALAPPDATA or ~/.cache.",
    ),
    Variable(
        "NYBBLE_LIBRARY",
        "path",
        None,
        "Load this library file and no other, e.g. a sanitized build.",
    ),
    Variable(
        "NYBBLE_C_INTERFACE",
        "flag",
        "0",
        "Call the library through the plain C interface that serves a torch below 2.10: slower a call, the same results.",
    ),
    Variable(
        "NYBBLE_CPU_ISA",
        "text",
        None,
        "Instruction set of the CPU kernels. Default: the best this CPU has.",
        choices=("generic", "avx2", "avx512", "avx512_vnni", "neon"),
    ),
    Variable(
        "NYBBLE_ACT_BITS",
        "integer",
        "16",
        "Precision of activations inside the quantized matmul: 32 float, 16 or 8 bit integers with a scale for each 32.",
        choices=("32", "16", "8"),
    ),
    Variable(
        "NYBBLE_BATCH_INVARIANT",
        "flag",
        "0",
        "On a GPU, results that do not depend on what else is in the batch; slower for many rows.",
    ),
    Variable(
        "NYBBLE_TEST_DATA",
        "path",
        None,
        "Folder with corpus/, demo-model/ and golden/, for the tests.",
    ),
    Variable("NYBBLE_CUDA", "text", "auto", "Build the CUDA part.", choices=("auto", "on", "off")),
    Variable(
        "TORCH_CUDA_ARCH_LIST",
        "text",
        None,
        "CUDA architectures to build for: 9.0, 9.0a, 8.0;8.6+PTX, or names such as Hopper. Default: the GPUs found.",
    ),
    Variable(
        "CUDA_HOME",
        "path",
        None,
        "Folder of the CUDA toolkit. Default: that of nvcc on PATH.",
        aliases=("CUDA_PATH",),
    ),
    Variable(
        "MAX_JOBS", "integer", None, "How many compilers run at once. Default: one a CPU core."
    ),
)
BY_NAME = {variable.name: variable for variable in TABLE}
# Aliases with a value of their own; the others count by being present.
VALUED_ALIASES = {"CUDA_PATH"}


def raw(name: str) -> str | None:
    """The text of a variable: its own, an alias's, or the default."""
    variable = BY_NAME[name]
    value = os.environ.get(name)
    if value is not None and value.strip():
        return value.strip()
    for alias in variable.aliases:
        if alias in os.environ:
            if alias not in VALUED_ALIASES:
                return "1"
            if os.environ[alias].strip():
                return os.environ[alias].strip()
    return variable.default


def _refuse(name: str, value: str, choices: str) -> NoReturn:
    from nybble.errors import SettingError

    raise SettingError(
        f"{name}={value} is not understood; expected {choices}. Unset it for the default."
    )


def flag(name: str) -> bool:
    """A yes or no. Raises ``SettingError`` for any other word."""
    value = raw(name)
    if value is None:
        return False
    if value.lower() in TRUE:
        return True
    if value.lower() in FALSE:
        return False
    _refuse(name, value, f"one of {', '.join(TRUE)} or {', '.join(FALSE)}")


def integer(name: str) -> int | None:
    """A whole number above 0, one of the choices where there are any. ``None``: unset and without default."""
    value = raw(name)
    if value is None:
        return None
    choices = BY_NAME[name].choices
    if (choices and value not in choices) or not value.isdecimal() or int(value) < 1:
        _refuse(
            name, value, f"one of {', '.join(choices)}" if choices else "a whole number above 0"
        )
    return int(value)


def text(name: str) -> str | None:
    """A word, one of the choices where there are any (any case). ``None``: unset and without default."""
    value = raw(name)
    choices = BY_NAME[name].choices
    if value is not None and choices:
        if value.lower() not in choices:
            _refuse(name, value, f"one of {', '.join(choices)}")
        return value.lower()
    return value


def path(name: str) -> Path | None:
    """A folder, ``~`` expanded. ``None``: unset and without default. It need not exist."""
    value = raw(name)
    return None if value is None else Path(value).expanduser()


def check() -> None:
    """Read every variable once, so that a mistake is told before any work. Raises ``SettingError``."""
    readers = {"flag": flag, "integer": integer, "text": text, "path": path}
    for variable in TABLE:
        readers[variable.kind](variable.name)


def cache_dir() -> Path:
    """Where built libraries are kept: ``NYBBLE_CACHE_DIR``, else ``nybble`` in the user's cache folder."""
    chosen = path("NYBBLE_CACHE_DIR")
    if chosen is not None:
        return chosen
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "nybble"
