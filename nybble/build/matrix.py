"""The wheels: a table of rules, and the rows it expands to.

``nybble build --plan`` prints the few wheels that fit everything, ``--classic`` the 88 artefacts of the engines before: one for
each Python, toolkit and torch. A row that today's sources cannot be built for stays in the table, says why, and names what serves
that installation instead. The workflows in .github/ are written from this table (tools/gen_workflows.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from nybble.build.cuda import DEFAULT, MINIMUM_CUDA, MINIMUM_DRIVERS, OLDER
from nybble.build.sources import TORCH_TARGET
from nybble.build.toolchain import version_tuple

UBUNTU, WINDOWS = "ubuntu-22.04", "windows-2022"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ANY_PYTHON, ANY_TORCH = "3.10+", f"{TORCH_TARGET}+"


def toolkit_tag(cuda: str, rocm: str = "") -> str:
    """A toolkit as file names write it: ``cu128``, ``rocm6.1``."""
    return f"rocm{rocm}" if rocm else f"cu{''.join(cuda.split('.')[:2])}"


@dataclass(frozen=True)
class Row:
    """One artefact: where it is built, for what, and whether today's sources can."""

    kind: str  # wheel or sdist
    system: str  # image it is built on
    python: str
    torch: str
    cuda: str = ""  # toolkit; empty: none
    rocm: str = ""
    archs: tuple[str, ...] = ()
    platform: str = ""  # platform tag of the wheel
    driver: str = ""  # oldest NVIDIA driver that runs its GPU code
    local: str = ""  # local version, such as +cu130
    note: str = ""
    blocked: str = ""  # why today's sources cannot be built for it; empty: they can
    served: str = ""  # what serves that installation instead

    @property
    def name(self) -> str:
        """Short name, unique in a plan: how release.py and the workflows call the row.

        >>> Row("wheel", UBUNTU, "3.10+", "2.10+", cuda="12.8.1", platform="win_amd64").name
        'win_amd64-cu128'
        """
        if self.kind == "sdist":
            return "sdist"
        python = "" if self.python == ANY_PYTHON else f"-py{self.python}"
        torch = "" if self.torch == ANY_TORCH else f"-torch{self.torch}"
        return f"{self.platform}-{toolkit_tag(self.cuda, self.rocm)}{python}{torch}"


# The few wheels that fit everything ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Wheels made with one CUDA toolkit, for all drivers from one release on."""

    cuda: str
    local: str  # PyPI takes no local version: the line without one is the one on PyPI
    note: str

    @property
    def driver(self) -> str:
        """Oldest driver that runs its code."""
        return str(MINIMUM_DRIVERS[version_tuple(self.cuda)[0]])

    @property
    def archs(self) -> tuple[str, ...]:
        """What its nvcc makes code for, and PTX of the newest for GPUs to come."""
        older = OLDER if version_tuple(self.cuda) < (13, 0) else ()
        return (*older, *DEFAULT[:-1], f"{DEFAULT[-1]}+PTX")


# A driver runs what toolkits of its own and of earlier major versions made (docs/install.md gives the source).
LINES = (
    Line("12.8.1", "", "runs under CUDA 12 and CUDA 13 drivers; the one on PyPI"),
    Line("13.0.2", "+cu130", "made by the compiler the kernels are developed with"),
)


@dataclass(frozen=True)
class Platform:
    """One platform tag and the image its wheels are made on."""

    tag: str
    system: str


PLATFORMS = (
    Platform("manylinux_2_28_x86_64", UBUNTU),
    Platform("manylinux_2_28_aarch64", f"{UBUNTU}-arm"),
    Platform("win_amd64", WINDOWS),
)


def current() -> list[Row]:
    """The wheels nybble ships: one for each platform and toolkit line, every Python and torch in each; and the sdist.

    >>> [row.local for row in current() if row.platform == "win_amd64"]
    ['', '+cu130']
    """
    rows = [
        Row(
            "wheel",
            platform.system,
            ANY_PYTHON,
            ANY_TORCH,
            cuda=line.cuda,
            archs=line.archs,
            platform=platform.tag,
            driver=line.driver,
            local=line.local,
            note=line.note,
        )
        for line in LINES
        for platform in PLATFORMS
    ]
    note = "no toolkit, no compiler: installs as Python, builds at first use where it can"
    return [*rows, Row("sdist", UBUNTU, ANY_PYTHON, ANY_TORCH, note=note)]


# The 88 ----------------------------------------------------------------------------------------------------------------------

PASCAL_TO_HOPPER = ("6.0", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0+PTX")
PASCAL_TO_BLACKWELL = ("6.0", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX")


@dataclass(frozen=True)
class Toolkit:
    """One CUDA toolkit and the torch releases it was paired with."""

    cuda: str
    torches: tuple[str, ...]
    archs: tuple[str, ...]


TOOLKITS = (
    Toolkit("11.8.0", ("2.3.1", "2.4.0", "2.5.0", "2.6.0"), PASCAL_TO_HOPPER),
    Toolkit("12.1.0", ("2.3.1", "2.4.0", "2.5.0"), PASCAL_TO_HOPPER),
    Toolkit("12.4.0", ("2.6.0",), PASCAL_TO_HOPPER),
    Toolkit("12.8.1", ("2.7.0", "2.8.0", "2.9.0"), PASCAL_TO_BLACKWELL),
)
ROCMS = (("5.6", "2.2.2"), ("6.0", "2.3.1"), ("6.1", "2.4.0"))


@dataclass(frozen=True)
class Exclusion:
    """Combinations that the 88 leave out: a Python on a system, with every torch below one, and why."""

    system: str
    python: str
    below: str  # torch releases before this one; empty: all
    rocm: str  # only with this ROCm; empty: only with CUDA
    reason: str


EXCLUDED = (
    Exclusion(UBUNTU, "3.13", "2.5.0", "", "torch has wheels for it on Linux from 2.5.0 on"),
    Exclusion(WINDOWS, "3.13", "2.6.0", "", "torch has wheels for it on Windows from 2.6.0 on"),
    Exclusion(UBUNTU, "3.12", "", "5.6", "the engines before had no wheel for it"),
    *(Exclusion(UBUNTU, "3.13", "", rocm, "older than this Python") for rocm, _ in ROCMS),
)


def excluded(system: str, python: str, torch: str, rocm: str = "") -> Exclusion | None:
    """The rule that leaves a combination out, or ``None``.

    >>> excluded(WINDOWS, "3.13", "2.5.0").reason
    'torch has wheels for it on Windows from 2.6.0 on'
    """
    for rule in EXCLUDED:
        if (rule.system, rule.python, rule.rocm) == (system, python, rocm) and (
            not rule.below or version_tuple(torch) < version_tuple(rule.below)
        ):
            return rule
    return None


def local_version(torch: str, cuda: str = "", rocm: str = "") -> str:
    """Local version of a classic wheel.

    >>> local_version("2.9.0", cuda="12.8.1"), local_version("2.4.0", rocm="6.1")
    ('+cu128-torch2.9.0', '+rocm6.1-torch2.4.0')
    """
    return f"+{toolkit_tag(cuda, rocm)}-torch{torch}"


def _blocked(torch: str, cuda: str, rocm: str) -> str:
    """Why today's sources cannot be built for a classic wheel."""
    found = []
    if rocm:
        found.append(
            "there is no HIP build: the kernels without tensor cores compile, none was run"
        )
    if version_tuple(torch) < version_tuple(TORCH_TARGET):
        found.append(f"the library builds against torch {TORCH_TARGET} or later only")
    if cuda and version_tuple(cuda) < MINIMUM_CUDA:
        found.append(f"the kernels need CUDA {MINIMUM_CUDA[0]}.{MINIMUM_CUDA[1]} or later")
    return "; ".join(found)


def _served(system: str, torch: str, rocm: str) -> str:
    """Which wheel of ours such an installation takes."""
    tag = next(platform.tag for platform in PLATFORMS if platform.system == system)
    below = version_tuple(torch) < version_tuple(TORCH_TARGET)
    how = ", through its plain C interface" if below else ""
    where = (
        "CPU kernels only, not run with ROCm"
        if rocm
        else f"CUDA {LINES[0].cuda} line, driver {LINES[0].driver} or later"
    )
    return f"{tag}, {where}{how}"


def _classic(
    system: str, python: str, torch: str, *, cuda: str = "", rocm: str = "", note: str = ""
) -> Row:
    kits = {kit.cuda: kit.archs for kit in TOOLKITS}
    archs = kits.get(cuda, ())
    return Row(
        "wheel",
        system,
        python,
        torch,
        cuda=cuda,
        rocm=rocm,
        archs=archs,
        platform="linux_x86_64" if system == UBUNTU else "win_amd64",
        local=local_version(torch, cuda, rocm),
        note=note,
        blocked=_blocked(torch, cuda, rocm),
        served=_served(system, torch, rocm),
    )


def _cuda_rows(system: str) -> Iterator[Row]:
    for kit in TOOLKITS:
        for torch in kit.torches:
            for python in PYTHONS:
                if not excluded(system, python, torch):
                    yield _classic(system, python, torch, cuda=kit.cuda)


def _rocm_rows() -> Iterator[Row]:
    for rocm, torch in ROCMS:
        for python in PYTHONS:
            if not excluded(UBUNTU, python, torch, rocm):
                yield _classic(UBUNTU, python, torch, rocm=rocm)


def classic() -> list[Row]:
    """The 88 artefacts: 40 for Ubuntu and 38 for Windows with CUDA, 8 with ROCm, one for a hosted image, one sdist.

    >>> len(classic())
    88
    """
    hosted = _classic(UBUNTU, "3.10", "2.2.2", cuda="12.1.0", note="for a hosted-spaces image")
    sdist = Row("sdist", UBUNTU, "3.11", "2.3.1", note="no toolkit: nothing is compiled")
    return [*_cuda_rows(UBUNTU), *_cuda_rows(WINDOWS), *_rocm_rows(), hosted, sdist]


def buildable_part(row: Row) -> Row:
    """A classic row with CUDA 12 as it can be built, against another torch; one with ROCm or CUDA 11 comes back as it was.

    >>> {row.cuda for row in map(buildable_part, classic()) if row.cuda and not row.blocked} == {"12.1.0", "12.4.0", "12.8.1"}
    True
    """
    if row.rocm or version_tuple(row.cuda) < MINIMUM_CUDA:
        return row
    return replace(row, blocked="")


def as_data(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Rows for JSON."""
    return [{"name": row.name} | asdict(row) for row in rows]


def exclusions() -> list[dict[str, object]]:
    """The rules of what the 88 leave out, for JSON."""
    return [asdict(rule) for rule in EXCLUDED]
