"""Builds that meet trouble: two at once, one killed, no place to write, a full disk. The compilers are small shell scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nybble.build import compile as building
from nybble.build import sources, toolchain
from nybble.errors import BuildError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake tools are shell scripts")

# Remembers where the build is and which hash it is for, as ninja is told neither.
CMAKE = """\
while [ $# -gt 0 ]; do
  case "$1" in
    -B) folder="$2" ;;
    -DNYBBLE_HASH=*) hash="${1#*=}" ;;
  esac
  shift
done
echo "$hash" > "$folder/hash"
"""
NINJA = """\
echo run >> "$0.log"
folder="$2"
printf '{"nybble_build":1,"hash":"%s"}\\0' "$(cat "$folder/hash")" > "$folder/NAME"
""".replace("NAME", sources.library_name())
RUN = """\
import sys
from pathlib import Path
from nybble.build import compile as building, toolchain
root = Path(sys.argv[1])
tools = toolchain.Tools(root / "cmake", root / "ninja", root / "c++", toolchain.Torch(root, "2.10", None, None))
print(building.build(building.Plan(root, "abc", tools, (), "abc-key")))
"""


def script(path: Path, body: str) -> Path:
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return path


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> building.Plan:
    """A plan whose tools are scripts and whose cache is this test's own."""
    monkeypatch.setenv("NYBBLE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    tools = toolchain.Tools(
        script(tmp_path / "cmake", CMAKE),
        script(tmp_path / "ninja", NINJA),
        tmp_path / "c++",
        toolchain.Torch(tmp_path, "2.10", None, None),
    )
    return building.Plan(tmp_path, "abc", tools, (), "abc-key")


def start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def runs(plan: building.Plan) -> int:
    return len(Path(f"{plan.tools.ninja}.log").read_text().splitlines())


def test_two_processes_build_once(plan: building.Plan, tmp_path: Path) -> None:
    script(plan.tools.ninja, "sleep 2\n" + NINJA)
    processes = [start(tmp_path), start(tmp_path)]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1] == str(building.cached("abc-key"))
    assert runs(plan) == 1


def test_a_killed_build_leaves_nothing_to_load(plan: building.Plan, tmp_path: Path) -> None:
    script(plan.tools.ninja, NINJA + "exec sleep 30\n")
    process = start(tmp_path)
    log = Path(f"{plan.tools.ninja}.log")
    until = time.monotonic() + 60
    while not list((tmp_path / "cache/native").glob(f"building-*/{sources.library_name()}")):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert building.cached("abc-key") is None
    log.unlink()
    script(plan.tools.ninja, NINJA)
    assert building.build(plan) == building.cached("abc-key")  # the dead process holds no lock
    assert runs(plan) == 1


def test_a_cache_that_cannot_be_written(
    plan: building.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NYBBLE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    path = building.build(plan)
    assert path.is_relative_to(tmp_path / "tmp")
    assert building.cached("abc-key") == path
    path.parents[1].chmod(0o777)  # now others may have written there
    assert building.cached("abc-key") is None
    with pytest.raises(BuildError, match="set NYBBLE_CACHE_DIR"):
        building.build(plan)


@pytest.mark.parametrize("program", ["cmake", "ninja"])
def test_a_full_disk(plan: building.Plan, tmp_path: Path, program: str) -> None:
    script(tmp_path / program, "echo 'error: cannot write: No space left on device'\nexit 1\n")
    with pytest.raises(BuildError, match="the disk is full .* NYBBLE_CACHE_DIR"):
        building.build(plan)
    assert building.cached("abc-key") is None


def test_a_compile_error_is_quoted(plan: building.Plan) -> None:
    script(plan.tools.ninja, "echo 'a.cpp:3:1: error: no such type'\nexit 1\n")
    with pytest.raises(BuildError, match="did not build with .*no such type"):
        building.build(plan)


def test_a_product_of_other_sources_is_refused(plan: building.Plan) -> None:
    script(plan.tools.cmake, CMAKE + 'echo other > "$folder/hash"\n')
    with pytest.raises(BuildError, match="without a sound"):
        building.build(plan)
    assert building.cached("abc-key") is None


def test_progress_comes_from_ninja(plan: building.Plan) -> None:
    script(plan.tools.ninja, "echo '[1/2] one'\necho '[2/2] two'\n" + NINJA)
    steps: list[tuple[int, int]] = []
    building.build(plan, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
