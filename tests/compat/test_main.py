"""python -m nybble.compat: a program written for the old modules runs unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import torch
import awq_inference_engine, exllamav2_ext, ft_attention

x, y = torch.ones(2, 8).half(), torch.empty(2, 8).half()
exllamav2_ext.rms_norm(x, torch.full((8,), 2.0).half(), y, 0.0)
print(__name__, sys.argv[1:], y[0, 0].item(), awq_inference_engine.__name__, ft_attention.__name__)
"""


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nybble.compat", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:."},
    )


def test_a_program_and_a_module(tmp_path: Path) -> None:
    (tmp_path / "old_program.py").write_text(PROGRAM)
    for how in (["old_program.py"], ["-m", "old_program"]):
        done = run(*how, "--flag", "3", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [
            "__main__", "['--flag',", "'3']", "2.0", "nybble.compat.awq_inference_engine", "nybble.compat.ft_attention",
        ]  # fmt: skip


def test_without_a_program_it_says_how(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 2 and "usage: python -m nybble.compat" in done.stdout
    assert run("--help", cwd=tmp_path).returncode == 0


def test_the_exit_status_is_the_programs(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(7)")
    assert run("fails.py", cwd=tmp_path).returncode == 7
