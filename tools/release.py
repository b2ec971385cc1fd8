"""Makes one artefact of the plan on this machine, as the release workflow does: python tools/release.py ROW

    python tools/release.py --list
    python tools/release.py sdist
    python tools/release.py manylinux_2_28_x86_64-cu130 --python 3.10 --python 3.13
    python tools/release.py manylinux_2_28_x86_64-cu130 --cpu --platform auto      # a rehearsal: no nvcc, any glibc
    python tools/release.py manylinux_2_28_x86_64-cu130 --try FILE --python 3.12   # only the test of a file that is there

Steps: export the commit, build, check the ABI, install in fresh environments and let the demo write, then checksum, SBOM and
provenance. Files come to --dist by rename, the provenance last, so that it vouches for the others; what it vouches for already is
not made again. The Python that runs this needs torch 2.10 or later, scikit-build-core, cmake and ninja, and on Linux auditwheel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
sys.path.insert(0, str(ROOT))  # this file runs as a program

from nybble.build import compile, matrix, sources  # noqa: E402
from nybble.build.toolchain import version_tuple  # noqa: E402
from tools import records  # noqa: E402

HOOK = "import sys; sys.path.insert(0, 'nybble/build'); import backend; print(backend.{hook}(sys.argv[1]))"
VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
LINUX = sys.platform == "linux"
LIBRARY = Path("nybble", "_lib", sources.library_name())


class ReleaseError(Exception):
    """A step failed; the text says what to do."""


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    row: matrix.Row
    dist: Path
    cpu: bool  # without the CUDA part
    archs: str
    platform: str  # platform tag to prove; auto: the oldest this machine can give
    torch: list[str]  # what pip installs before the wheel in a fresh environment
    pythons: list[str]  # versions or programs for the fresh environments
    again: bool = False  # though it is made already
    file: Path | None = None  # only try this one out

    @property
    def asked(self) -> dict[str, Any]:
        """What changes the file, for its provenance."""
        return {
            "row": self.row.name,
            "toolkit": self.row.cuda,
            "cpu": self.cpu,
            "archs": self.archs,
            "platform": self.platform,
        }


def say(text: str) -> None:
    print(f"release: {text}", flush=True)


def run(command: list[str | Path], why: str, **options: Any) -> str:
    """Runs one program and returns what it prints; a failure tells the step and the end of its output."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise ReleaseError(f"{why} failed ({' '.join(map(str, command))}):\n{tail}")
    return done.stdout


def git(*arguments: str) -> str:
    return run(["git", "-C", ROOT, *arguments], "git").strip()


# Source ----------------------------------------------------------------------------------------------------------------------


def read_version(root: Path) -> str:
    """The version, from the one line that has it."""
    found = VERSION.findall((root / "nybble" / "__init__.py").read_text("utf-8"))
    if len(found) != 1:
        raise ReleaseError(f"{root}/nybble/__init__.py has {len(found)} lines with a version")
    version: str = found[0]
    return version


def local_version(order: Order) -> str:
    """The row's; with ``cpu`` in it for a wheel without the CUDA part, so that a rehearsal is never taken for the release."""
    local = order.row.local
    if order.cpu and order.row.kind == "wheel":
        return f"{local}-cpu" if local else "+cpu"
    return local


def export(folder: Path, local: str) -> None:
    """The committed files, with the local version written in."""
    archive = folder.parent / "source.tar"
    git("archive", "--format=tar", f"--output={archive}", "HEAD")
    shutil.unpack_archive(archive, folder)
    archive.unlink()
    if local:
        file = folder / "nybble" / "__init__.py"
        version = read_version(folder)
        text = VERSION.sub(f'__version__ = "{version}{local}"', file.read_text("utf-8"))
        file.write_bytes(text.encode())  # no other line ends on Windows


# Build and check -------------------------------------------------------------------------------------------------------------


def build(order: Order, source: Path, output: Path, epoch: int) -> Path:
    """The wheel or sdist, by the hook that pip would call."""
    variables = dict(os.environ) | {"SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C"}
    # What an environment's own programs are found by, when it is not activated.
    variables["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    if order.row.kind == "sdist":
        hook, variables["NYBBLE_NOCOMPILE"] = "build_sdist", "1"
    else:
        hook, variables["NYBBLE_NOCOMPILE"] = "build_wheel", "0"
        variables["NYBBLE_CUDA"] = "off" if order.cpu else "on"
        variables["TORCH_CUDA_ARCH_LIST"] = order.archs
    output.mkdir()
    text = run(
        [sys.executable, "-c", HOOK.format(hook=hook), output],
        "the build",
        cwd=source,
        env=variables,
    )
    (made,) = output.iterdir()
    if made.name.endswith("-any.whl"):
        reason = next(
            (line for line in text.splitlines() if line.startswith("nybble:")), "no reason told"
        )
        raise ReleaseError(f"the wheel came out without the library: {reason}")
    return made


def library_of(wheel: Path, folder: Path) -> Path:
    """The native library out of a wheel."""
    shutil.unpack_archive(wheel, folder, "zip")
    return folder / LIBRARY


def audit(order: Order, wheel: Path, folder: Path, epoch: int) -> Path:
    """Checks the library's ABI and architectures; returns the wheel under the platform tag it was proved for."""
    library = library_of(wheel, folder / "unpacked")
    info = sources.read_build_info(library)
    if info is None:
        raise ReleaseError(f"{library} does not say what it was built from")
    if bool(info["cuda_archs"]) == order.cpu:
        raise ReleaseError(
            f"{wheel.name} has code for {info['cuda_archs'] or 'no GPU'}, asked: {order.archs}"
        )
    if not order.cpu and version_tuple(info["cuda"]) != version_tuple(order.row.cuda):
        raise ReleaseError(
            f"{wheel.name} is made with CUDA {info['cuda']}, and {order.row.name} wants {order.row.cuda}: set CUDA_HOME to that "
            f"toolkit, or rehearse with --toolkit {info['cuda']}"
        )
    if not LINUX:
        say("ABI check and auditwheel: for Linux only")
        return wheel
    say(run([sys.executable, TOOLS / "check_abi.py", library], "the ABI check").strip())
    variables = os.environ | {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "SOURCE_DATE_EPOCH": str(epoch),
    }
    command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch_cpu.so"]
    try:
        run(
            [*command, "--plat", order.platform, "-w", folder / "tagged", wheel],
            "auditwheel",
            env=variables,
        )
    except ReleaseError as error:
        raise ReleaseError(
            f"{error}\nWhere the libraries of this machine are too new for {order.platform}: build in the image "
            f"quay.io/pypa/{order.row.platform}, or rehearse with --platform auto"
        ) from error
    (tagged,) = (folder / "tagged").iterdir()
    return tagged


# A fresh environment ---------------------------------------------------------------------------------------------------------


def environment(python: str, folder: Path) -> Path:
    """A virtual environment of a Python program or, through uv, of a version; returns its Python."""
    if re.fullmatch(r"\d+\.\d+(\.\d+)?", python):
        if shutil.which("uv") is None:
            raise ReleaseError(f"--python {python} needs uv (pip install uv); or name a program")
        run(
            ["uv", "venv", "--quiet", "--seed", "--python", python, folder],
            f"uv venv for Python {python}",
        )
    else:
        run([python, "-m", "venv", folder], f"venv of {python}")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def try_out(
    order: Order, artefact: Path, python: str, folder: Path, version: str
) -> dict[str, Any]:
    """Installs in a fresh environment without a compiler on PATH, and runs tools/smoke.py there."""
    program = environment(python, folder / "env")
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NYBBLE_", "PYTHON"))
    }
    variables["NYBBLE_CACHE_DIR"] = str(folder / "cache")
    for name in ("CXX", "CC", "CUDA_HOME", "CUDA_PATH"):
        variables.pop(name, None)
    if os.name != "nt":
        variables["PATH"] = str(program.parent)
    native = order.row.kind == "wheel"
    pip = [program, "-m", "pip", "install", "--quiet"]
    options: dict[str, Any] = {"env": variables, "cwd": folder}
    run([*pip, *order.torch], "installing torch", **options)
    run([*pip, artefact], f"installing {artefact.name}", **options)
    command = [
        program,
        "-I",
        TOOLS / "smoke.py",
        "--version",
        version,
        "--native" if native else "--bare",
    ]
    text = run(command, f"the smoke test with {python}", **options)
    record: dict[str, Any] = json.loads(
        next(line for line in text.splitlines() if line.startswith("{"))
    )
    say(
        f"Python {record['python']}, torch {record['torch']}: {record['library']} "
        f"{record['cpu'] or 'PyTorch'}, text {record['sha256'][:12]}"
    )
    return record


def try_all(order: Order, artefact: Path, folder: Path, version: str) -> None:
    """The smoke test with every Python asked for; the demo must write the same text in each."""
    texts: dict[str, str] = {}
    for number, python in enumerate(order.pythons):
        place = folder / f"try-{number}"
        place.mkdir()
        texts[python] = try_out(order, artefact, python, place, version)["text"]
        shutil.rmtree(place)  # torch is large
    if len(set(texts.values())) > 1:
        raise ReleaseError(f"the demo writes different texts: {json.dumps(texts, indent=1)}")


def try_file(order: Order, file: Path) -> None:
    """The smoke test of a file that was made elsewhere."""
    if not file.is_file():
        raise ReleaseError(f"{file} is not there")
    with tempfile.TemporaryDirectory(prefix="nybble-try-") as name:
        try_all(order, file, Path(name), records.metadata(file)["Version"])


# All of it -------------------------------------------------------------------------------------------------------------------


def made_before(order: Order, commit: str) -> Path | None:
    """The file of an earlier run of the same order and commit, whole and unchanged."""
    for statement in sorted(order.dist.glob("*.intoto.json")):
        record = json.loads(statement.read_text())
        made = record["predicate"]["buildDefinition"]
        subject = record["subject"][0]
        file = order.dist / subject["name"]
        same = made["externalParameters"] == order.asked
        same = same and made["resolvedDependencies"][0]["digest"]["gitCommit"] == commit
        if same and file.is_file() and records.sha256(file) == subject["digest"]["sha256"]:
            return file
    return None


def tools_used(order: Order, folder: Path) -> dict[str, str]:
    """Versions of what had a part in the bytes; of the compilers, what the unpacked library says itself."""
    from importlib import metadata

    names = [
        "scikit-build-core",
        *(["torch", "cmake", "ninja"] if order.row.kind == "wheel" else []),
    ]
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # cmake and ninja may be the system's
            continue
    info = sources.read_build_info(folder / "unpacked" / LIBRARY) or {}
    return found | {name: info[name] for name in ("compiler", "cuda") if info.get(name)}


def steps(order: Order, commit: str, folder: Path) -> Iterator[Path]:
    """Makes everything in ``folder``; yields the finished files, the provenance last."""
    epoch = int(git("log", "-1", "--format=%ct"))
    source, local = folder / "nybble", local_version(order)
    export(source, local)
    version = read_version(source)
    say(f"building {order.row.name}, version {version}, commit {commit[:12]}")
    artefact = build(order, source, folder / "built", epoch)
    if order.row.kind == "wheel":
        artefact = audit(order, artefact, folder, epoch)
    say(f"{artefact.name}: {artefact.stat().st_size / 1e6:.1f} MB")
    try_all(order, artefact, folder, version)
    cuda = order.row.cuda if not order.cpu else ""
    builder = os.environ.get("GITHUB_WORKFLOW_REF", "urn:nybble:tools/release.py")
    beside = {
        ".sha256": f"{records.sha256(artefact)}  {artefact.name}\n",
        ".cdx.json": json.dumps(records.sbom(artefact, epoch=epoch, cuda=cuda), indent=2) + "\n",
        ".intoto.json": json.dumps(
            records.provenance(
                artefact,
                epoch=epoch,
                commit=commit,
                asked=order.asked,
                tools=tools_used(order, folder),
                builder=builder,
            ),
            indent=2,
        )
        + "\n",
    }
    yield artefact
    for suffix, text in beside.items():
        file = artefact.with_name(artefact.name + suffix)
        file.write_text(text)
        yield file


@contextlib.contextmanager
def workplace(order: Order) -> Iterator[Path]:
    """A folder for one run at a time, under the same name each time: nvcc names kernels after the path of their file."""
    folder = order.dist / f".making-{order.row.name}"
    with compile.locked(order.dist / ".lock"):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def release(order: Order) -> Path:
    """Makes the artefact, or finds it made."""
    if order.row.blocked:
        raise ReleaseError(
            f"{order.row.name}: {order.row.blocked}. Take instead: {order.row.served}."
        )
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--untracked-files=no"):
        say("this checkout has changes that are not committed: they are left out")
    order.dist.mkdir(parents=True, exist_ok=True)
    found = None if order.again else made_before(order, commit)
    if found is not None:
        say(f"{found} is made already, from this commit")
        return found
    os.umask(0o022)  # modes are in the archive
    with workplace(order) as folder:
        files = list(steps(order, commit, folder))
        for file in files:
            os.replace(file, order.dist / file.name)
    say(f"{order.dist / files[0].name} is done")
    return order.dist / files[0].name


def rows() -> dict[str, matrix.Row]:
    """Every row by its name; the sdist is the one we ship."""
    return {row.name: row for row in [*matrix.classic(), *matrix.current()]}


def parse(arguments: list[str]) -> Order | None:
    """The order, and ``None`` for a list of the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", nargs="?", help="a name out of --list")
    parser.add_argument(
        "--list", action="store_true", help="the names, and what stands in their way"
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--cpu", action="store_true", help="leave the CUDA part out")
    parser.add_argument(
        "--partly",
        action="store_true",
        help="a classic row with CUDA 12 as it can be built: against the torch of this Python",
    )
    parser.add_argument("--archs", help="GPU architectures instead of the row's")
    parser.add_argument(
        "--toolkit", help="a rehearsal with another CUDA than the row's, in its local version"
    )
    parser.add_argument("--platform", help="platform tag to prove instead of the row's, or auto")
    parser.add_argument("--torch", action="append", help="for pip, in the fresh environment")
    parser.add_argument(
        "--python", action="append", help="version (through uv) or program; repeatable"
    )
    parser.add_argument("--again", action="store_true", help="though it is made already")
    parser.add_argument("--try", dest="try_file", type=Path, metavar="FILE", help="only test this")
    options = parser.parse_args(arguments)
    if options.list:
        return None
    if options.row not in rows():
        parser.error(f"no row is called {options.row}: --list names them")
    row = rows()[options.row]
    if options.partly:
        row = matrix.buildable_part(row)
    if options.toolkit:
        row = replace(row, cuda=options.toolkit, local=f"+{matrix.toolkit_tag(options.toolkit)}")
    return Order(
        row=row,
        dist=options.dist.resolve(),
        cpu=options.cpu,
        archs="" if options.cpu else options.archs or " ".join(row.archs),
        platform=options.platform or ("auto" if row.platform == "linux_x86_64" else row.platform),
        torch=options.torch or ["torch"],
        pythons=options.python or [sys.executable],
        again=options.again,
        file=options.try_file.resolve() if options.try_file else None,
    )


def main() -> int:
    order = parse(sys.argv[1:])
    if order is None:
        for name, row in rows().items():
            print(name, f"({row.blocked})" if row.blocked else "")
        return 0
    try:
        if order.file:
            try_file(order, order.file)
        else:
            release(order)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
