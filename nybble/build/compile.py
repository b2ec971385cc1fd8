"""Builds the library: configure with CMake, run ninja, check the result, put it in place in one step.

Nothing half done can be taken for a library: the build happens in a folder of its own, the file is checked, and only then does one
rename give it the name the loader looks for. A lock keeps two processes from doing the same work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nybble import env
from nybble.build import msvc, sources, toolchain
from nybble.errors import BuildError

# How a step is told to whoever shows progress: steps done, steps in all.
Progress = Callable[[int, int], None]
STEP = re.compile(r"\[(\d+)/(\d+)\]")


@dataclass(frozen=True)
class Plan:
    """One build: what from, with what, into which cache entry."""

    tree: Path  # sources
    hash: str  # of the sources
    tools: toolchain.Tools
    options: tuple[str, ...]  # -D options of CMake that change the result
    key: str  # name of the cache entry

    def describe(self) -> str:
        return f"nybble {self.hash} {' '.join(self.options)} torch {self.tools.torch.version}"


def plan(*, sanitize: str = "", archs: str | None = None, check_spills: bool = False) -> Plan:
    """What would be built here and now. Raises ``BuildError`` naming what is missing.

    ``archs`` stands in for ``TORCH_CUDA_ARCH_LIST``; ``all`` is the default list without looking for GPUs.
    ``check_spills``: a CUDA unit marked hot must not spill registers.
    """
    from nybble.build import cuda as cuda_build

    tree = sources.source_tree()
    if tree is None:
        raise BuildError(
            "the sources of the native library are not in this package: pip install --force-reinstall nybble"
        )
    tools = toolchain.find_tools()
    options = [
        f"-DNYBBLE_DEBUG={'ON' if env.flag('NYBBLE_EXT_DEBUG') else 'OFF'}",
        f"-DNYBBLE_SANITIZE={sanitize}",
        *(["-DNYBBLE_CHECK_SPILLS=ON"] if check_spills else []),
    ]
    options += cuda_build.cmake_options(tools.torch, env.text("NYBBLE_CUDA") or "auto", archs)
    content = sources.content_hash(tree)
    return Plan(tree, content, tools, tuple(options), cache_key(content, tuple(options)))


def cache_key(content: str, options: tuple[str, ...]) -> str:
    """Cache entry: sources, the stable ABI target they are built for, and the options, CUDA's version among them."""
    import hashlib

    rest = hashlib.sha256("\0".join(options).encode()).hexdigest()[:8]
    return f"{content}-torch{sources.TORCH_TARGET}-{rest}"


def cache_folders() -> tuple[Path, Path]:
    """The cache folder, and the temporary one of this user that stands in where the cache cannot be written."""
    uid = os.getuid() if hasattr(os, "getuid") else "user"
    return env.cache_dir() / "native", Path(tempfile.gettempdir()) / f"nybble-{uid}-native"


def trusted(folder: Path) -> bool:
    """Whether only this user can have put files here: anyone may make a folder under a shared /tmp, and libraries are run."""
    if not hasattr(os, "getuid") or folder == cache_folders()[0]:
        return True
    try:
        facts = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022


def writable_cache() -> Path:
    """The first cache folder that can be written and trusted."""
    for folder in cache_folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                if trusted(folder):
                    return folder
        except OSError:
            continue
    wanted, stand_in = cache_folders()
    raise BuildError(
        f"neither {wanted} nor {stand_in} can be written: set NYBBLE_CACHE_DIR to a folder that can"
    )


def cached(key: str) -> Path | None:
    """A library with this key in the cache, or in the temporary folder that stands in for it."""
    for folder in filter(trusted, cache_folders()):
        path = folder / key / sources.library_name()
        record = sources.read_build_info(path)
        if record is not None and record.get("hash") == key.partition("-")[0]:
            return path
    return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds ``path`` as a lock between processes. The system lets go of it when a process dies, however it dies."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.2)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(plan: Plan, progress: Progress | None = None) -> Path:
    """Builds into the cache and returns the library's path; at once when another process has built it meanwhile."""
    cache = writable_cache()
    try:
        with locked(cache / f"{plan.key}.lock"):
            found = cached(plan.key)
            if found is not None:
                return found
            with build_folder(plan, cache) as folder:
                product = compile_in(plan, folder, progress)
                return put(product, cache / plan.key / sources.library_name())
    except OSError as error:
        raise BuildError(explain_os_error(error, cache)) from error


def put(product: Path, target: Path) -> Path:
    """Copies a checked library beside its place and renames it: the name never stands for half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(handle)
    try:
        shutil.copyfile(product, name)
        os.chmod(name, 0o755)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def kept_objects(plan: Plan) -> Path | None:
    """Folder in the checkout for the objects of these options; ``None`` for an installed package."""
    if plan.tree != sources.CHECKOUT:
        return None
    return plan.tree.parent / "build" / plan.key.rsplit("-", 1)[1]


@contextlib.contextmanager
def build_folder(plan: Plan, cache: Path) -> Iterator[Path]:
    """Where objects go: kept in a checkout, so that an edit rebuilds only what it touches; thrown away elsewhere."""
    kept = kept_objects(plan)
    if kept is not None and os.access(plan.tree.parent, os.W_OK):
        folder = kept
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            yield folder
    else:
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as name:
            yield Path(name)


def explain_os_error(error: OSError, cache: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full while building in {cache}: free about 200 MB, or set NYBBLE_CACHE_DIR to another disk"
    return f"the build in {cache} could not go on ({error}): set NYBBLE_CACHE_DIR to a folder that can be written"


def configure_command(plan: Plan, folder: Path) -> list[str]:
    return [
        str(plan.tools.cmake),
        *("-S", str(plan.tree), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={plan.tools.ninja}",
        *([] if os.environ.get("CXX") else [f"-DCMAKE_CXX_COMPILER={plan.tools.compiler}"]),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DNYBBLE_TORCH_DIR={plan.tools.torch.folder}",
        f"-DNYBBLE_HASH={plan.hash}",
        *plan.options,
    ]


def compile_in(plan: Plan, folder: Path, progress: Progress | None = None) -> Path:
    """Configures and builds in ``folder``, checks the product, returns its path."""
    variables = dict(os.environ)
    if sys.platform == "win32":
        variables.update(msvc.environment(plan.tools.compiler))
    # A cache left by another compiler or a moved checkout makes CMake stop; a fresh start costs less than the question.
    first = run(configure_command(plan, folder), variables, None)
    if first is not None:
        for name in ("CMakeCache.txt", "CMakeFiles"):
            stale = folder / name
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(
                missing_ok=True
            )
        first = run(configure_command(plan, folder), variables, None)
    failure = first or run(
        [str(plan.tools.ninja), "-C", str(folder), "-j", str(toolchain.jobs())], variables, progress
    )
    if failure is not None:
        raise BuildError(explain_failure(failure, plan, folder))
    product = folder / sources.library_name()
    record = sources.read_build_info(product)
    if record is None or record.get("hash") != plan.hash:
        raise BuildError(
            f"the build ended without a sound {product}: run `nybble build --clean --verbose` and look at its output"
        )
    return product


def run(command: list[str], variables: dict[str, str], progress: Progress | None) -> str | None:
    """Runs one program, passing on ninja's ``[done/all]``. Returns ``None``, or all that it printed when it failed."""
    verbose = env.flag("NYBBLE_VERBOSE")
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=variables,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if verbose:
                    sys.stderr.write(line)
                step = STEP.match(line)
                if step and progress:
                    progress(int(step.group(1)), int(step.group(2)))
        except BaseException:
            process.kill()
            raise
    return None if process.returncode == 0 else "".join(lines)


def explain_failure(output: str, plan: Plan, folder: Path) -> str:
    """The sentence a user needs, out of a compiler's output."""
    if "No space left on device" in output:
        return explain_os_error(OSError(errno.ENOSPC, "disk full"), folder)
    if re.search(r"Killed signal|fatal error: Killed|out of memory", output):
        return "a compiler was killed, most likely for memory: set MAX_JOBS=1 and try again"
    found = re.search(
        r"^.*(?:multiple definition|undefined reference|error\b|Error\b).*$", output, re.MULTILINE
    )
    reason = found.group(0).strip() if found else (output.strip().splitlines() or ["no output"])[-1]
    return (
        f"the native library did not build with {plan.tools.compiler}: {reason} "
        "(all of it: NYBBLE_VERBOSE=1 nybble build; to go on without: NYBBLE_FORCE_REFERENCE=1)"
    )


def forget(plan: Plan) -> None:
    """Removes the built library of this plan and its kept objects."""
    path = cached(plan.key)
    if path is not None:
        path.unlink()
    kept = kept_objects(plan)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
