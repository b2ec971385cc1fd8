"""pip's build hook: a wheel with the library where that can be built, a pure Python wheel where not; never a failed install.

pip imports this file alone, before nybble and its dependencies are there; it puts the checkout on the path and uses the toolchain
module, which needs nothing but the standard library. In a pure wheel the sources travel along, so the first use of an op builds
the library once there is a compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).resolve().parent]

Settings = dict[str, Any] | None
# A wheel made without CMake: Python, and the sources to build from later.
PURE = {"wheel.cmake": "false"}


def native_options() -> dict[str, str] | None:
    """CMake's definitions for a native wheel, or ``None`` with a message that says why there is none."""
    from nybble import env
    from nybble.build import msvc, sources, toolchain
    from nybble.build.cuda import cmake_options
    from nybble.errors import NybbleError

    try:
        if env.flag("NYBBLE_NOCOMPILE"):
            raise NybbleError("NYBBLE_NOCOMPILE is set")
        torch = toolchain.find_torch()
        compiler = toolchain.find_compiler()
        if compiler is None:
            raise NybbleError(f"no C++ compiler was found: {toolchain.compiler_advice()}")
        options = cmake_options(torch, env.text("NYBBLE_CUDA") or "auto")
    except NybbleError as error:
        print(f"nybble: installing without the native library ({error}).", file=sys.stderr)
        return None
    if sys.platform == "win32":
        import os

        os.environ.update(msvc.environment(compiler))
    defined = dict(option.removeprefix("-D").split("=", 1) for option in options)
    return defined | {
        "NYBBLE_TORCH_DIR": str(torch.folder),
        "NYBBLE_HASH": sources.content_hash(sources.CHECKOUT),
        "NYBBLE_DEBUG": "ON" if env.flag("NYBBLE_EXT_DEBUG") else "OFF",
    }


def with_options(settings: Settings) -> dict[str, Any]:
    """pip's settings and ours: CMake's definitions, or a wheel without CMake."""
    options = native_options()
    merged = dict(settings or {})
    if options is None:
        return merged | PURE
    return merged | {f"cmake.define.{name}": value for name, value in options.items()}


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """cmake and ninja, only where something will be compiled and this machine has none."""
    if native_options() is None:
        return []
    from scikit_build_core.build import get_requires_for_build_wheel as ask

    found: list[str] = ask(with_options(config_settings))
    return found


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """The wheel. A native build that fails is told and replaced by a pure one."""
    from scikit_build_core.build import build_wheel as build

    options = with_options(config_settings)
    try:
        name: str = build(wheel_directory, options, metadata_directory)
    except (Exception, SystemExit) as error:
        if options.get("wheel.cmake") == "false":
            raise
        print(f"nybble: the native build failed ({error}); installing without it.", file=sys.stderr)
        name = build(wheel_directory, dict(config_settings or {}) | PURE, metadata_directory)
    return name


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Nothing: an editable install compiles at first use, and again when the sources change."""
    return []


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """A wheel that points at the checkout."""
    from scikit_build_core.build import build_editable as build

    settings = dict(config_settings or {}) | PURE | {"editable.mode": "inplace"}
    name: str = build(wheel_directory, settings, metadata_directory)
    return name


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """Nothing beyond the backend itself."""
    return []


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """The source archive, with ``csrc``."""
    from scikit_build_core.build import build_sdist as build

    name: str = build(sdist_directory, config_settings)
    return name
