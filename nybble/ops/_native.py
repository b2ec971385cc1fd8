"""Loads the native library at the first op, or says once why the PyTorch reference serves instead.

The order: ``NYBBLE_FORCE_REFERENCE``; a library installed with the package; a matching one in the user's cache; a build now; the
reference. Whatever is loaded, the references are registered too, below every device: they serve each op and device that the library
has no kernel for, and ``nybble doctor`` lists them.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nybble import env
from nybble.build import sources
from nybble.build.toolchain import MINIMUM_TORCH, version_tuple
from nybble.errors import BuildError, NybbleError, SettingError
from nybble.ops._schema import SCHEMAS

_lock = threading.Lock()


@dataclass(frozen=True)
class State:
    """What serves the ops in this process."""

    path: Path | None  # the library loaded; None: references only
    origin: str  # "package", "cache", "built now", "reference"
    reason: str  # why this and not an earlier choice; empty when there is nothing to say
    info: dict[str, Any]  # the library's build record
    interface: str = ""  # "stable ABI", or "C interface" below torch 2.10


_state: State | None = None
_references: torch.library.Library | None = None
_kernels: torch.library.Library | None = None  # those of the C interface


def ensure_loaded() -> State:
    """Makes every op callable, once a process, and returns what serves them. Raises ``SettingError`` for a bad variable.

    >>> ensure_loaded().origin in ("package", "cache", "built now", "reference")
    True
    """
    global _state
    if _state is None:
        with _lock:
            if _state is None:
                env.check()
                _install_references()
                state = _choose()
                _apply_cpu_isa(state)
                _state = state
    return _state


def native_devices(op: str) -> list[str]:
    """Dispatch keys (``CPU``, ``CUDA``) for which the loaded library has a kernel of ``op``."""
    name = f"nybble::{op}"
    return [
        key for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    ]


def _install_references() -> None:
    """Registers each reference under every device; a device's own kernel takes precedence over it."""
    global _references
    if _references is not None:
        return
    # Late: the references are not needed to import nybble.
    from nybble.ops.reference import IMPLEMENTATIONS

    library = torch.library.Library("nybble", "IMPL")
    for op, function in IMPLEMENTATIONS.items():
        library.impl(op, function, "CompositeExplicitAutograd")
    _references = library


def _choose() -> State:
    """Goes down the order and takes the first that works."""
    if env.flag("NYBBLE_FORCE_REFERENCE"):
        return State(None, "reference", "NYBBLE_FORCE_REFERENCE is set", {})
    reasons: list[str] = []
    chosen = env.path("NYBBLE_LIBRARY")
    if chosen is not None:
        state = _load(chosen, "NYBBLE_LIBRARY", "", sources.read_build_info(chosen) or {}, reasons)
        if state is None:
            raise SettingError(f"NYBBLE_LIBRARY={chosen}: {reasons[0]}")
        return state
    state = _from_package(reasons) or _from_cache_or_build(reasons)
    if state is not None:
        return state
    reason = "; ".join(reasons)
    warnings.warn(
        f"nybble runs on the slow PyTorch reference: {reason}. `nybble doctor` tells more.",
        RuntimeWarning,
        stacklevel=4,
    )
    return State(None, "reference", reason, {})


def _from_package(reasons: list[str]) -> State | None:
    path = sources.PACKAGE / "_lib" / sources.library_name()
    if not path.exists():
        return None
    info = sources.read_build_info(path)
    if info is None:
        reasons.append(f"{path} is damaged: pip install --force-reinstall nybble")
        return None
    tree = sources.source_tree()
    if tree is not None and sources.in_checkout() and info["hash"] != sources.content_hash(tree):
        # An editable install: the sources were edited after the library was built.
        reasons.append(f"{path} is older than the sources")
        return None
    return _load(path, "package", "", info, reasons)


def _from_cache_or_build(reasons: list[str]) -> State | None:
    from nybble.build import compile as building

    try:
        plan = building.plan()
        path = building.cached(plan.key)
        if path is not None:
            return _load(
                path, "cache", "; ".join(reasons), sources.read_build_info(path) or {}, reasons
            )
        if env.flag("NYBBLE_NOCOMPILE"):
            reasons.append(
                "NYBBLE_NOCOMPILE is set and no built library was found: unset it, or run `nybble build`"
            )
            return None
        why = (
            "; ".join(reasons)
            or "no library was installed with the package, and none in the cache fits"
        )
        with building_progress(why) as progress:
            path = building.build(plan, progress)
        return _load(path, "built now", why, sources.read_build_info(path) or {}, reasons)
    except SettingError:
        raise
    except NybbleError as error:
        reasons.append(str(error))
        return None


def building_progress(why: str) -> Any:
    """A progress bar on standard error, and the reason for the wait."""
    from nybble.build import progress

    return progress.bar(why)


def _load(
    path: Path, origin: str, reason: str, info: dict[str, Any], reasons: list[str]
) -> State | None:
    """Loads one library; a file that cannot be loaded adds its sentence to ``reasons``."""
    try:
        interface = _take_into_use(path)
    except BuildError as error:
        reasons.append(str(error))
        return None
    except OSError as error:
        reasons.append(explain_load_error(path, str(error)))
        return None
    if not native_devices("rms_norm"):  # any op would do: one file registers them all
        reasons.append(f"{path} has no kernels for this torch: run `nybble build --clean`")
        return None
    return State(path, origin, reason, info, interface)


def _take_into_use(path: Path) -> str:
    """Registers the library's ops and returns the interface. Raises ``OSError`` or ``BuildError`` for a file that does not do."""
    library = ctypes.CDLL(str(path))
    if not hasattr(library, "nybble_use_torch"):
        raise BuildError(f"{path} is not a library of this nybble: run `nybble build --clean`")
    if version_tuple(torch.__version__) >= MINIMUM_TORCH and not env.flag("NYBBLE_C_INTERFACE"):
        use = library.nybble_use_torch
        use.argtypes, use.restype = [ctypes.c_void_p] * 2, ctypes.c_char_p
        missing = use(_torch_library("torch_cpu"), _torch_library("torch_cuda"))
        if missing:
            raise OSError(f"undefined symbol: {missing.decode()}")
        return "stable ABI"

    from nybble.ops._c_interface import Library

    global _kernels
    _kernels = torch.library.Library("nybble", "IMPL")
    functions = Library(path)
    # A torch for ROCm calls its device CUDA too.
    devices = ("CPU", "CUDA") if torch.version.cuda else ("CPU",)
    for op in SCHEMAS:
        for device in devices:
            kernel = functions.kernel(op, device)
            if kernel is not None:
                _kernels.impl(op, kernel, device)
    return "C interface"


def _torch_library(stem: str) -> int | None:
    """The handle of a library that torch has opened already; ``None`` where this torch has none of the name."""
    name = {"win32": f"{stem}.dll", "darwin": f"lib{stem}.dylib"}.get(sys.platform, f"lib{stem}.so")
    beside = Path(torch.__file__).parent / "lib" / name
    try:
        return ctypes.CDLL(str(beside) if beside.exists() else name)._handle
    except OSError:
        return None


def explain_load_error(path: Path, text: str) -> str:
    """One sentence for what the dynamic loader said."""
    if "undefined symbol" in text or "symbol not found" in text.lower():
        return (
            f"{path} does not fit torch {torch.__version__} ({text.rsplit(':', 1)[-1].strip()} is missing there): run "
            "`nybble build --clean`, or install torch 2.10 or later"
        )
    return f"{path} cannot be loaded ({text}): run `nybble build --clean`"


def _apply_cpu_isa(state: State) -> None:
    """Gives ``NYBBLE_CPU_ISA`` to the kernels. Raises ``SettingError`` when this CPU or build has no such set."""
    wanted = env.text("NYBBLE_CPU_ISA")
    if wanted is None or state.path is None:
        return
    problem = call_library(state.path, "nybble_set_cpu_isa", wanted.encode())
    if problem:
        raise SettingError(f"NYBBLE_CPU_ISA={wanted}: {problem.decode()}")


def call_library(path: Path, name: str, *arguments: bytes) -> bytes | None:
    """Calls a plain C function of the library, from texts to a text; ``None`` for a null pointer."""
    function = getattr(ctypes.CDLL(str(path)), name)
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_char_p] * len(arguments)
    answer: bytes | None = function(*arguments)
    return answer


def cpu_isa() -> str | None:
    """Instruction set the CPU kernels use now; ``None`` on the reference."""
    path = ensure_loaded().path
    name = None if path is None else call_library(path, "nybble_cpu_isa")
    return None if name is None else name.decode()
