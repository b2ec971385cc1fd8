"""nybble runs, makes and serves low-bit language models.

>>> import nybble                                                    # doctest: +SKIP
>>> llm = nybble.LLM("demo")                                         # doctest: +SKIP
>>> llm.generate("Once upon a time", nybble.SamplingParams(max_tokens=20)).text  # doctest: +SKIP

Importing this package loads neither torch nor the native library: each name is imported when it is
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nybble import errors

if TYPE_CHECKING:
    from nybble.generator.llm import LLM
    from nybble.generator.request import Completion, SamplingParams
    from nybble.models.loader import load_model

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "SamplingParams", "__version__", "errors", "load_model"]

_HOMES = {
    "LLM": "nybble.generator.llm",
    "SamplingParams": "nybble.generator.request",
    "Completion": "nybble.generator.request",
    "load_model": "nybble.models.loader",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nybble' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
