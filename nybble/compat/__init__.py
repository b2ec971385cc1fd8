"""The modules that ran EXL2 and AWQ models before, over nybble's ops.

>>> import nybble.compat
>>> nybble.compat.install()
>>> import exllamav2_ext
>>> exllamav2_ext.__name__
'nybble.compat.exllamav2_ext'
"""

from __future__ import annotations

import importlib
import sys

MODULES = ("exllamav2_ext", "awq_inference_engine", "ft_attention")


def install() -> None:
    """Make ``import exllamav2_ext``, ``awq_inference_engine`` and ``ft_attention`` give nybble's, in this process."""
    for name in MODULES:
        sys.modules[name] = importlib.import_module(f"nybble.compat.{name}")
