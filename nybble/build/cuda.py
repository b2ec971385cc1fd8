"""The CUDA side of the toolchain: nvcc, its version against torch's, and the architectures to build for."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from nybble import env
from nybble.build.toolchain import Torch, output_of, version_tuple
from nybble.errors import BuildError, SettingError, help_at

MINIMUM_CUDA = (12, 0)  # the first whose headers have what Hopper's copy engine is told with
# Oldest driver for code made with a toolkit of each major version: docs.nvidia.com/deploy/cuda-compatibility.
MINIMUM_DRIVERS = {11: 450, 12: 525, 13: 580}
# Names as NVIDIA and torch use them.
NAMES: dict[str, tuple[str, ...]] = {
    "pascal": ("6.0", "6.1"),
    "volta": ("7.0",),
    "turing": ("7.5",),
    "ampere": ("8.0", "8.6"),
    "ada": ("8.9",),
    "hopper": ("9.0",),
    "blackwell": ("10.0", "12.0"),
}
# What a wheel is built for when nobody says: every family with tensor cores, and PTX for those to come.
DEFAULT = ("7.5", "8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
# Pascal and Volta, on the kernels without tensor cores: in wheels made by nvcc 12, the last that knows them.
OLDER = ("6.0", "7.0")


@dataclass(frozen=True, order=True)
class Arch:
    """One architecture: number times ten (90), letter ("", "a", "f"), and whether its PTX goes in for later GPUs."""

    number: int
    letter: str = ""
    ptx: bool = False

    def cmake(self) -> list[str]:
        """As ``CMAKE_CUDA_ARCHITECTURES`` takes it. PTX goes in without the letter: with it no later GPU could use it."""
        return [
            f"{self.number}{self.letter}-real",
            *([f"{self.number}-virtual"] if self.ptx else []),
        ]


def find_nvcc() -> Path | None:
    """nvcc of ``CUDA_HOME`` or ``CUDA_PATH``, else on PATH, else in the usual folder."""
    name = "nvcc.exe" if sys.platform == "win32" else "nvcc"
    home = env.path("CUDA_HOME")
    if home is not None:
        chosen = home / "bin" / name
        if not chosen.is_file():
            raise BuildError(
                f"CUDA_HOME={home} has no bin/{name}: set it to a CUDA toolkit, or unset it"
            )
        return chosen
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    usual = Path("/usr/local/cuda/bin/nvcc")
    return usual if usual.is_file() else None


def nvcc_version(nvcc: Path) -> tuple[int, int]:
    """Version of a compiler, from the word after "release"."""
    output = output_of(nvcc, "--version") or ""
    found = re.search(r"release (\d+)\.(\d+)", output)
    if not found:
        raise BuildError(
            f"{nvcc} --version does not tell a version: set CUDA_HOME to a working CUDA toolkit"
        )
    return int(found.group(1)), int(found.group(2))


def check_nvcc(nvcc: Path, torch: Torch) -> tuple[int, int]:
    """Version of nvcc, after refusing one that is too old or of another major version than torch's CUDA."""
    version = nvcc_version(nvcc)
    shown = f"{version[0]}.{version[1]}"
    if version < MINIMUM_CUDA:
        raise BuildError(
            f"CUDA {shown} ({nvcc}) is too old: install CUDA {MINIMUM_CUDA[0]}.{MINIMUM_CUDA[1]} or "
            "later and set CUDA_HOME to it"
        )
    if torch.cuda is not None and version_tuple(torch.cuda)[0] != version[0]:
        raise BuildError(
            f"nvcc is CUDA {shown} ({nvcc}) and torch {torch.version} was made with CUDA {torch.cuda}: set CUDA_HOME to a CUDA "
            f"{version_tuple(torch.cuda)[0]} toolkit, or install a torch made with CUDA {version[0]} ({help_at('a-compiler')})"
        )
    return version


def known_archs(nvcc: Path) -> set[int]:
    """Architecture numbers nvcc can build, from ``nvcc --list-gpu-arch``."""
    return {
        int(number)
        for number in re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch") or "")
    }


def parse_arch_list(value: str) -> list[Arch]:
    """Architectures of a ``TORCH_CUDA_ARCH_LIST``: numbers, names, ``+PTX``, between semicolons, commas or spaces.

    >>> parse_arch_list("8.0;9.0a+PTX")
    [Arch(number=80, letter='', ptx=False), Arch(number=90, letter='a', ptx=True)]
    """
    archs: list[Arch] = []
    for word in re.split(r"[;,\s]+", value.strip()):
        if not word:
            continue
        bare, plus, suffix = word.partition("+")
        ptx = bool(plus)
        numbers = NAMES.get(bare.lower(), (bare,))
        for index, number in enumerate(numbers):
            found = re.fullmatch(r"(\d{1,2})\.(\d)([af]?)", number)
            if not found or (plus and suffix.upper() != "PTX"):
                raise SettingError(
                    f"TORCH_CUDA_ARCH_LIST={value}: {word} is not understood; expected numbers such as 9.0 or 9.0a, names "
                    f"({', '.join(name.capitalize() for name in NAMES)}), each with or without +PTX"
                )
            last = index == len(numbers) - 1
            archs.append(
                Arch(int(found.group(1)) * 10 + int(found.group(2)), found.group(3), ptx and last)
            )
    return sorted(set(archs))


def detected_archs() -> list[Arch]:
    """Architectures of the GPUs here, the newest with PTX; asked from the driver's tool so that no context is made."""
    output = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = sorted(
        {
            int(a) * 10 + int(b)
            for a, b in re.findall(r"^\s*(\d+)\.(\d)\s*$", output or "", re.MULTILINE)
        }
    )
    return [Arch(number, "a" if number == 90 else "", number == found[-1]) for number in found]


def choose_archs(nvcc: Path, asked: str | None = None) -> list[Arch]:
    """What to build for: what is asked, else the GPUs here, else the default list. Refuses what nvcc does not know."""
    known = known_archs(nvcc)
    value = asked or env.text("TORCH_CUDA_ARCH_LIST")
    if value == "all":
        wanted = []
    else:
        wanted = parse_arch_list(value) if value else detected_archs()
    if not wanted:
        fitting = [
            arch for arch in parse_arch_list(" ".join(DEFAULT)) if not known or arch.number in known
        ]
        return [*fitting[:-1], Arch(fitting[-1].number, "", True)]
    unknown = [arch for arch in wanted if known and arch.number not in known]
    if unknown:
        names = ", ".join(f"{a.number // 10}.{a.number % 10}" for a in unknown)
        listed = ", ".join(f"{n // 10}.{n % 10}" for n in sorted(known))
        version = ".".join(map(str, nvcc_version(nvcc)))
        raise BuildError(
            f"nvcc {version} ({nvcc}) cannot build for compute capability {names}; it knows {listed}: "
            "set TORCH_CUDA_ARCH_LIST to some of these, or install another CUDA toolkit and set CUDA_HOME to it"
        )
    return wanted


def rocm_advice(rocm: str) -> str:
    """What a torch for ROCm is told."""
    return (
        f"nybble has no GPU kernels for ROCm {rocm}: its CPU kernels serve, and GPU tensors use the PyTorch reference "
        f"({help_at('rocm')})"
    )


def cmake_options(torch: Torch, wanted: str, archs: str | None = None) -> list[str]:
    """CMake's options for the CUDA part. ``wanted``: ``auto`` (where torch is a CUDA torch and nvcc is there), ``on``, ``off``."""
    if wanted == "off" or (wanted == "auto" and torch.cuda is None):
        return ["-DNYBBLE_CUDA=OFF"]
    if torch.hip is not None:
        raise BuildError(
            f"NYBBLE_CUDA=on and torch {torch.version} is made for ROCm {torch.hip}: {rocm_advice(torch.hip)}"
        )
    nvcc = find_nvcc()
    if nvcc is None:
        if wanted == "on":
            raise BuildError(
                "NYBBLE_CUDA=on and no nvcc was found: install the CUDA toolkit and set CUDA_HOME to its folder"
            )
        return ["-DNYBBLE_CUDA=OFF"]
    version = check_nvcc(nvcc, torch)
    chosen = ";".join(name for arch in choose_archs(nvcc, archs) for name in arch.cmake())
    return [
        "-DNYBBLE_CUDA=ON",
        f"-DNYBBLE_CUDA_ARCHS={chosen}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DNYBBLE_CUDA_VERSION={version[0]}.{version[1]}",
    ]


def driver_problem(driver: str | None, made_with: str) -> str | None:
    """What to do about a driver too old for a library made with a toolkit; ``None`` where it is new enough or unknown.

    >>> driver_problem("550.54.14", "13.0")[:58]
    'driver 550.54.14 is too old for code made with CUDA 13.0, '
    """
    wanted = MINIMUM_DRIVERS.get(version_tuple(made_with)[0])
    found = version_tuple(driver or "")[0]
    if wanted is None or found == 0 or found >= wanted:
        return None
    return (
        f"driver {driver} is too old for code made with CUDA {made_with}, which needs {wanted} or later: update the driver, or "
        f"take the wheel of an older CUDA ({help_at('cuda-12-and-cuda-13')})"
    )


def torch_problem(driver: str | None, cuda: str | None, *, windows: bool = False) -> str | None:
    """What to do about a torch that cannot use a GPU under this driver: one without CUDA, or with a newer CUDA than the driver's.

    >>> torch_problem("580.65", None)
    'this torch was made without CUDA: pip install --force-reinstall torch'
    """
    newest = version_tuple(driver or "")[0] >= MINIMUM_DRIVERS[13]
    command = "pip install --force-reinstall torch"
    # PyPI's torch is made with CUDA 13 for Linux and without CUDA for Windows.
    if windows or not newest:
        command += f" --index-url https://download.pytorch.org/whl/{'cu130' if newest else 'cu128'}"
    if cuda is None:
        return f"this torch was made without CUDA: {command}"
    wanted = MINIMUM_DRIVERS.get(version_tuple(cuda)[0])
    found = version_tuple(driver or "")[0]
    if wanted is None or found == 0 or found >= wanted:
        return None
    return f"driver {driver} is too old for torch's CUDA {cuda}, which needs {wanted} or later: update the driver, or {command}"


def serves(archs: list[str], number: int) -> bool:
    """Whether code built for ``archs`` (as CMake writes them) runs on a GPU of compute capability ``number`` / 10.

    Machine code runs on its own major version from its minor number up; with a letter, on its own number only; PTX on all later.
    """
    for arch in archs:
        found = re.fullmatch(r"(\d+)([af]?)-(real|virtual)", arch)
        if not found:
            continue
        built = int(found.group(1))
        if found.group(2):
            fits = built == number
        elif found.group(3) == "real":
            fits = built // 10 == number // 10 and built <= number
        else:
            fits = built <= number
        if fits:
            return True
    return False
