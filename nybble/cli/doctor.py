"""``nybble doctor``: what this machine has, what nybble uses of it, and the command that fixes what is missing."""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated, Any

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    env: Annotated[
        bool, typer.Option("--env", help="The environment variables nybble reads.")
    ] = False,
) -> None:
    """Look over the installation and say what to do about each thing missing."""
    if env:
        rows = environment()
        typer.echo(json_module.dumps(rows, indent=2)) if json else show_environment(rows)
        return
    report = examine()
    typer.echo(json_module.dumps(report, indent=2)) if json else show(report)


def environment() -> list[dict[str, Any]]:
    """Each variable with its type, default, present text and meaning."""
    import os

    from nybble import env as settings

    return [
        {
            "name": v.name,
            "type": "|".join(v.choices) or v.kind,
            "default": v.default,
            "set": os.environ.get(v.name),
            "aliases": list(v.aliases),
            "help": v.help,
        }
        for v in settings.TABLE
    ]


def examine() -> dict[str, Any]:
    """Everything the report shows, as plain data."""
    import platform

    import torch

    from nybble import env as settings
    from nybble.build import toolchain

    library = examine_library()
    gpus = examine_gpus(library)
    driver = first_line(
        toolchain.output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    )
    tools, unfit = examine_tools()
    fixes = library_fixes(library) + gpu_fixes(library, gpus, driver)
    # What is built already needs none of these.
    if library["path"] is None or not all(gpu["code"] for gpu in gpus):
        fixes += unfit
        if gpus and torch.version.cuda and tools["nvcc"]["path"] is None:
            fix = "install the CUDA toolkit and set CUDA_HOME to its folder"
            fixes.append({"missing": "nvcc", "fix": fix})
    cache = settings.cache_dir() / "native"
    entries = [p for p in cache.glob("*/*nybble*") if p.is_file()]
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        },
        "driver": driver,
        "gpus": gpus,
        **tools,
        "library": library,
        "cache": {
            "path": str(cache),
            "libraries": len(entries),
            "bytes": sum(p.stat().st_size for p in entries),
        },
        "fixes": fixes,
    }


def examine_tools() -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What a build would use, and what it would miss."""
    from nybble.build import cuda, toolchain
    from nybble.errors import NybbleError

    fixes: list[dict[str, str]] = []
    compiler, cmake, ninja = None, toolchain.find_program("cmake"), toolchain.find_program("ninja")
    try:
        compiler = toolchain.find_compiler()
        if compiler is None:
            fixes.append({"missing": "a C++ compiler", "fix": toolchain.compiler_advice()})
    except NybbleError as error:
        fixes.append({"missing": "a C++ compiler", "fix": str(error)})
    for name, found in (("cmake", cmake), ("ninja", ninja)):
        if found is None:
            fixes.append({"missing": name, "fix": f"pip install {name}"})
    installed = None
    try:
        installed = toolchain.find_torch()
    except NybbleError as error:
        fixes.append({"missing": "a torch to build the library with", "fix": str(error)})
    nvcc, nvcc_version = None, None
    try:
        nvcc = cuda.find_nvcc()
        if nvcc is not None and installed is not None:
            nvcc_version = ".".join(map(str, cuda.check_nvcc(nvcc, installed)))
    except NybbleError as error:
        fixes.append({"missing": "a CUDA compiler that fits", "fix": str(error)})
    tools = {
        "compiler": {
            "path": text(compiler),
            "version": first_line(toolchain.output_of(compiler, "--version")) if compiler else None,
        },
        "cmake": text(cmake),
        "ninja": text(ninja),
        "nvcc": {"path": text(nvcc), "version": nvcc_version},
    }
    return tools, fixes


def library_fixes(library: dict[str, Any]) -> list[dict[str, str]]:
    """Why no library serves, where none does."""
    if library["origin"] == "none":
        return [{"missing": "a sound setting", "fix": library["reason"]}]
    if library["path"] is None:
        return [{"missing": "the native library", "fix": library["reason"]}]
    return []


def gpu_fixes(
    library: dict[str, Any], gpus: list[dict[str, Any]], driver: str | None
) -> list[dict[str, str]]:
    """What keeps the GPUs here from being used: the driver, torch, or a library without code for them."""
    import torch

    from nybble.build import cuda

    fixes = []
    if torch.version.hip:
        fixes.append({"missing": "kernels for ROCm", "fix": cuda.rocm_advice(torch.version.hip)})
    too_old = cuda.driver_problem(driver, library["info"].get("cuda", ""))
    if too_old is not None:
        fixes.append({"missing": "a driver that is new enough", "fix": too_old})
    if gpus:
        found = cuda.torch_problem(driver, torch.version.cuda, windows=sys.platform == "win32")
        if found is not None:
            missing = (
                "a torch that fits the driver" if torch.version.cuda else "a torch for the GPU"
            )
            fixes.append({"missing": missing, "fix": found})
    for gpu in gpus:
        if not gpu["code"]:
            fix = f"TORCH_CUDA_ARCH_LIST={gpu['arch']} NYBBLE_CUDA=on nybble build --clean"
            fixes.append({"missing": f"code for {gpu['name']} ({gpu['arch']})", "fix": fix})
    return fixes


def text(value: object) -> str | None:
    return None if value is None else str(value)


def first_line(value: str | None) -> str | None:
    return value.splitlines()[0] if value else None


def examine_library() -> dict[str, Any]:
    """What serves the ops; loads the library the way the first op would."""
    import warnings

    from nybble.errors import SettingError
    from nybble.ops import _native, _schema

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its text is in the report
            state = _native.ensure_loaded()
    except SettingError as error:
        return {
            "path": None,
            "origin": "none",
            "reason": str(error),
            "interface": "",
            "cpu_isa": None,
            "info": {},
            "ops": {},
        }
    native = {op: _native.native_devices(op) for op in _schema.SCHEMAS}
    ops = {
        op: {device: "native" if device in devices else "reference" for device in ("CPU", "CUDA")}
        for op, devices in native.items()
    }
    return {
        "path": text(state.path),
        "origin": state.origin,
        "reason": state.reason,
        "interface": state.interface,
        "cpu_isa": _native.cpu_isa(),
        "info": state.info,
        "ops": ops,
    }


def examine_gpus(library: dict[str, Any]) -> list[dict[str, Any]]:
    """Each GPU by the driver's tool, and whether the library holds code for it."""
    from nybble.build import cuda, toolchain

    output = (
        toolchain.output_of("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
        or ""
    )
    gpus = []
    for line in output.splitlines():
        name, _, capability = line.rpartition(",")
        major, _, minor = capability.strip().partition(".")
        if not (major.isdecimal() and minor.isdecimal()):
            continue
        number = int(major) * 10 + int(minor)
        served = cuda.serves(library["info"].get("cuda_archs", []), number)
        gpus.append({"name": name.strip(), "arch": f"{major}.{minor}", "code": served})
    return gpus


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    from rich.console import Console
    from rich.table import Table

    from nybble.errors import help_at

    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    library, torch = report["library"], report["torch"]
    compiler, nvcc = report["compiler"], report["nvcc"]
    table.add_row("system", report["system"])
    toolkit = f"ROCm {torch['hip']}" if torch["hip"] else f"CUDA {torch['cuda'] or 'none'}"
    table.add_row("torch", f"{torch['version']}, {toolkit}")
    table.add_row("driver", report["driver"] or "none")
    for gpu in report["gpus"]:
        code = "has code for it" if gpu["code"] else "has no code for it"
        table.add_row("GPU", f"{gpu['name']} ({gpu['arch']}), the library {code}")
    table.add_row("compiler", compiler["version"] or compiler["path"] or "none")
    table.add_row("nvcc", " ".join(filter(None, (nvcc["version"], nvcc["path"]))) or "none")
    table.add_row("cmake, ninja", f"{report['cmake'] or 'none'}, {report['ninja'] or 'none'}")
    how = ", ".join(filter(None, (library["origin"], library["interface"])))
    table.add_row("library", f"{library['path'] or 'none'} ({how})")
    if library["reason"]:
        table.add_row("", library["reason"])
    table.add_row("CPU kernels", library["cpu_isa"] or "PyTorch reference")
    cache = report["cache"]
    table.add_row(
        "cache", f"{cache['path']}: {cache['libraries']} libraries, {cache['bytes'] >> 10} KiB"
    )
    console.print(table)
    ops = Table("op", "CPU", "CUDA", box=None, pad_edge=False)
    for op, devices in library["ops"].items():
        ops.add_row(op, devices["CPU"], devices["CUDA"])
    console.print(ops)
    for entry in report["fixes"]:
        console.print(
            f"missing: {entry['missing']}\n  {entry['fix']}", markup=False, soft_wrap=True
        )
    if report["fixes"]:
        console.print(f"More: {help_at('which-command')}", highlight=False)
    else:
        console.print("Nothing is missing.")


def show_environment(rows: list[dict[str, Any]]) -> None:
    """The table of variables for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("variable", "type", "default", "set to", "meaning")
    for row in rows:
        name = "\n".join([row["name"], *(f"({alias})" for alias in row["aliases"])])
        table.add_row(name, row["type"], row["default"] or "", row["set"] or "", row["help"])
    Console().print(table)
