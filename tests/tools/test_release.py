"""The release rehearsal: what it refuses, what it does not do twice, and the records beside a wheel. No wheel is built here."""

from __future__ import annotations

import doctest
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import nybble
from nybble.build import matrix
from tools import hip_check, records, release

EPOCH = 1_700_000_000
METADATA = """Metadata-Version: 2.4
Name: nybble
Version: 0.1.0
Requires-Dist: torch>=2.10
Requires-Dist: pytest; extra == "dev"

text
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "dist" / "nybble-0.1.0-py3-none-manylinux_2_28_x86_64.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("nybble-0.1.0.dist-info/METADATA", METADATA)
    return path


def order(dist: Path, *more: str, row: str = "manylinux_2_28_x86_64-cu130") -> release.Order:
    made = release.parse([row, "--dist", str(dist), *more])
    assert made is not None
    return made


def vouch(wheel: Path, asked: release.Order, commit: str) -> None:
    statement = records.provenance(
        wheel, epoch=EPOCH, commit=commit, asked=asked.asked, tools={}, builder="urn:test"
    )
    wheel.with_name(wheel.name + ".intoto.json").write_text(json.dumps(statement))


@pytest.mark.parametrize("module", [records, hip_check], ids=lambda m: m.__name__)
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_the_units_for_every_gpu_leave_out_only_tensor_cores() -> None:
    """Each folder of kernels has one without them, or no other GPU could run the op."""
    named = {unit.relative_to(hip_check.CSRC / "cuda").as_posix() for unit in hip_check.units()}
    plain = {"attention/plain.cu", "qmatmul/simt.cu", "matmul/tiles.cu", "int8_matmul/tiles.cu"}
    assert plain | {"paged_attention/plain.cu", "decode_attention/plain.cu", "norm.cu"} <= named
    assert not {"attention/mma.cu", "qmatmul/few.cu", "paged_attention/q8.cu"} & named


def test_every_row_can_be_named() -> None:
    assert len(release.rows()) == len(matrix.classic()) + len(matrix.current()) - 1  # one sdist
    assert order(Path("x"), row="sdist").row.torch == matrix.ANY_TORCH


def test_a_row_that_cannot_be_built_says_what_serves_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "steps", lambda *arguments: iter([]))
    name = "linux_x86_64-rocm6.1-py3.10-torch2.4.0"
    with pytest.raises(release.ReleaseError, match=r"no HIP build.*Take instead: manylinux"):
        release.release(order(tmp_path, row=name))


def test_the_buildable_part_of_a_classic_row() -> None:
    """Its local version and architectures, another torch; of a row with ROCm or CUDA 11 there is no such part."""
    asked = order(Path("x"), "--partly", row="linux_x86_64-cu128-py3.12-torch2.9.0")
    assert (asked.row.blocked, asked.platform) == ("", "auto")
    assert asked.archs == "6.0 6.1 7.0 7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
    assert release.local_version(asked) == "+cu128-torch2.9.0"
    rocm = order(Path("x"), "--partly", row="linux_x86_64-rocm6.1-py3.10-torch2.4.0")
    assert "no HIP build" in rocm.row.blocked
    old = order(Path("x"), "--partly", row="linux_x86_64-cu118-py3.10-torch2.3.1")
    assert "CUDA 12.0" in old.row.blocked


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        release.parse(["cu999"])
    assert "no row is called cu999" in capsys.readouterr().err


def test_a_finished_file_is_not_made_again(wheel: Path) -> None:
    asked = order(wheel.parent)
    assert release.made_before(asked, "abc") is None
    vouch(wheel, asked, "abc")
    assert release.made_before(asked, "abc") == wheel


@pytest.mark.parametrize("change", ["commit", "settings", "bytes", "gone"])
def test_a_changed_file_is_made_again(wheel: Path, change: str) -> None:
    asked = order(wheel.parent)
    vouch(wheel, asked, "abc")
    commit = "abd" if change == "commit" else "abc"
    if change == "settings":
        asked = order(wheel.parent, "--archs", "9.0a")
    elif change == "bytes":
        wheel.write_bytes(wheel.read_bytes() + b"x")
    elif change == "gone":
        wheel.unlink()
    assert release.made_before(asked, commit) is None


def test_nothing_half_made_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> Path:
        raise release.ReleaseError("the build failed")

    monkeypatch.setattr(release, "git", lambda *arguments: "1700000000")
    monkeypatch.setattr(release, "export", lambda folder, local: None)
    monkeypatch.setattr(release, "read_version", lambda folder: "0.1.0")
    monkeypatch.setattr(release, "build", fails)
    with pytest.raises(release.ReleaseError):
        release.release(order(tmp_path / "dist"))
    assert [path.name for path in (tmp_path / "dist").iterdir()] == [".lock"]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_the_local_version_is_written_into_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "checkout"
    (root / "nybble").mkdir(parents=True)
    shutil.copy(nybble.__file__, root / "nybble")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", "-C", root, *command], check=True)
    (root / "nybble" / "__init__.py").write_text("not committed")
    monkeypatch.setattr(release, "ROOT", root)
    release.export(tmp_path / "out", "+cu128-torch2.9.0")
    assert release.read_version(tmp_path / "out") == f"{nybble.__version__}+cu128-torch2.9.0"
    with pytest.raises(release.ReleaseError, match="0 lines with a version"):
        release.read_version(root)


def test_a_wheel_without_the_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook of pip never fails; a release must."""

    def pure(command: list[str], why: str, **options: object) -> str:
        (Path(command[-1]) / "nybble-0.1.0-py3-none-any.whl").touch()
        return "nybble: installing without the native library (no C++ compiler was found)."

    monkeypatch.setattr(release, "run", pure)
    with pytest.raises(release.ReleaseError, match=r"without the library.*no C\+\+ compiler"):
        release.build(order(tmp_path), tmp_path, tmp_path / "built", EPOCH)


def test_a_failed_program_tells_the_end_of_its_output() -> None:
    with pytest.raises(release.ReleaseError, match=r"the step failed .*\nlast words"):
        release.run([sys.executable, "-c", "print('last words'); exit(3)"], "the step")


def test_a_rehearsal_is_told_from_the_release() -> None:
    assert release.local_version(order(Path("x"), "--cpu")) == "+cu130-cpu"
    assert release.local_version(order(Path("x"), "--cpu", row="win_amd64-cu128")) == "+cpu"
    assert release.local_version(order(Path("x"))) == "+cu130"
    assert release.local_version(order(Path("x"), row="sdist")) == ""


def test_a_library_of_another_toolkit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver and its SBOM would not be the row's; a rehearsal says which toolkit it takes, and is told from the release."""
    monkeypatch.setattr(release, "library_of", lambda wheel, folder: tmp_path)
    made = {"cuda": "12.4", "cuda_archs": ["80-real"]}
    monkeypatch.setattr(release.sources, "read_build_info", lambda library: made)
    monkeypatch.setattr(release, "LINUX", False)
    asked = order(tmp_path, row="manylinux_2_28_x86_64-cu128")
    with pytest.raises(release.ReleaseError, match=r"made with CUDA 12.4.*wants 12.8.*--toolkit"):
        release.audit(asked, tmp_path / "x.whl", tmp_path, EPOCH)
    other = order(tmp_path, "--toolkit", "12.4", row="manylinux_2_28_x86_64-cu128")
    assert release.audit(other, tmp_path / "x.whl", tmp_path, EPOCH) == tmp_path / "x.whl"
    assert release.local_version(other) == "+cu124"
    assert other.asked != asked.asked


@pytest.mark.parametrize(
    ("row", "flag"), [("sdist", "--bare"), ("manylinux_2_28_x86_64-cu130", "--native")]
)
def test_what_a_fresh_environment_must_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, flag: str
) -> None:
    """Of a wheel the library serves; of the sdist doctor asks for a compiler, which is not on PATH."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def recorded(command: list[object], why: str, **options: dict[str, str]) -> str:
        calls.append(([str(part) for part in command], options.get("env", {})))
        return (
            '{"python": "3", "torch": "2", "library": "", "cpu": null, "sha256": "", "text": "t"}'
        )

    monkeypatch.setattr(release, "run", recorded)
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setenv("NYBBLE_LIBRARY", "elsewhere")
    file = tmp_path / "nybble.whl"
    release.try_out(order(tmp_path, "--torch", "torch==9", row=row), file, "py", tmp_path, "1.0")
    (made, _), (torch, _), (install, _), (smoke, variables) = calls
    assert made[:3] == ["py", "-m", "venv"]
    assert torch[-1] == "torch==9" and install[-1] == str(file)
    assert smoke[1] == "-I" and flag in smoke and smoke[smoke.index("--version") + 1] == "1.0"
    assert not {"CXX", "NYBBLE_LIBRARY"} & set(variables)
    if sys.platform != "win32":
        assert variables["PATH"] == str(Path(smoke[0]).parent)


def test_the_demo_must_write_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(order: object, artefact: object, python: str, *more: object) -> dict[str, str]:
        return {"text": "same" if python != "3.13" else "other"}

    monkeypatch.setattr(release, "try_out", tried)
    two = order(tmp_path, "--python", "3.10", "--python", "3.12")
    release.try_all(two, tmp_path, tmp_path, "0.1.0")
    with pytest.raises(release.ReleaseError, match="different texts"):
        release.try_all(
            order(tmp_path, "--python", "3.12", "--python", "3.13"), tmp_path, tmp_path, ""
        )


def test_sbom(wheel: Path) -> None:
    record = records.sbom(wheel, epoch=EPOCH, cuda="13.0.2")
    root = record["metadata"]["component"]
    assert root["purl"] == "pkg:pypi/nybble@0.1.0"
    assert root["hashes"][0]["content"] == records.sha256(wheel)
    parts = {part["bom-ref"]: part for part in record["components"]}
    assert len(parts) == len(record["components"])
    assert parts["cudart_static"]["version"] == "13.0.2"
    assert (
        parts["torch"]["scope"] == "required"
        and parts['pytest:extra=="dev"']["scope"] == "optional"
    )
    assert set(record["dependencies"][0]["dependsOn"]) == set(parts)
    assert record == records.sbom(wheel, epoch=EPOCH, cuda="13.0.2")
    without = records.sbom(wheel, epoch=EPOCH, cuda="")["components"]
    assert "cudart_static" not in [part["name"] for part in without]


def test_a_file_without_metadata_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w"):
        pass
    with pytest.raises(ValueError, match="0 metadata files"):
        records.metadata(tmp_path / "x.whl")


def test_provenance(wheel: Path) -> None:
    asked = {"row": "x"}
    statement = records.provenance(
        wheel, epoch=EPOCH, commit="abc", asked=asked, tools={"cmake": "4"}, builder="urn:b"
    )
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [
        {"name": wheel.name, "digest": {"sha256": records.sha256(wheel)}}
    ]
    made = statement["predicate"]["buildDefinition"]
    assert made["externalParameters"] == asked
    assert made["resolvedDependencies"][0] == {"name": "source", "digest": {"gitCommit": "abc"}}
