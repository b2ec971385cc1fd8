"""The command on a fake model: what it prints where, exit codes, errors in one line, Ctrl-C."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import nybble.generator.llm
from nybble.cli import main
from nybble.errors import FormatError
from nybble.generator.chat import PLAIN, PLAIN_STOPS, ChatTemplate
from nybble.generator.llm import LLM
from tests.generator.fake import FakeModel, FakeTokenizer, engine

COMMANDS = ["generate", "chat", "quantize", "eval", "info", "doctor", "build", "bench"]


class FakeLLM(LLM):
    """The real class around the fake model."""

    model_type = FakeModel
    last: FakeLLM

    def __init__(self, model, **options):
        self.asked, self.tokenizer = (model, options), FakeTokenizer()
        self.engine = engine(self.model_type(), context=options["max_context"] or 256)
        self._chat = ChatTemplate(PLAIN, stops=PLAIN_STOPS)
        type(self).last = self


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(nybble.generator.llm, "LLM", FakeLLM)
    monkeypatch.delenv("NYBBLE_VERBOSE", raising=False)
    return lambda *arguments, **options: CliRunner().invoke(main, list(arguments), **options)


def test_generate_text_and_speed(run):
    result = run("generate", "-p", "Once", "-n", "20", "--seed", "3")
    assert result.exit_code == 0
    assert "[prompt: 4 tokens" in result.stderr and "text: 20 tokens" in result.stderr
    assert result.stdout == run("generate", "-p", "Once", "-n", "20", "--seed", "3").stdout
    assert result.stdout != run("generate", "-p", "Once", "-n", "20", "--seed", "4").stdout


def test_generate_options_arrive(run):
    run(
        "generate",
        "FOLDER",
        "-p",
        "x",
        "--device",
        "cpu",
        "--act-bits",
        "8",
        "--max-context",
        "200",
        "-n",
        "1",
    )
    assert FakeLLM.last.asked == ("FOLDER", {"device": "cpu", "act_bits": 8, "max_context": 200})


def test_generate_json_from_standard_input(run):
    result = run("generate", "-p", "-", "--json", "-n", "5", "--temperature", "0", input="Dear Sir")
    record = json.loads(result.stdout)
    assert (record["usage"], record["finish_reason"]) == (
        {"prompt_tokens": 8, "completion_tokens": 5},
        "length",
    )
    assert len(record["token_ids"]) == 5 and record["timings"]["decode_tokens"] == 4
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--top-p", "2"], "top_p is 2.0"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["-n", "5000"], "set max_tokens to 255 or less"),
        (["--stop", ""], "not empty"),
    ],
)
def test_errors_are_one_line(run, arguments, text):
    result = run("generate", "-p", "x", *arguments)
    assert result.exit_code == 1
    assert text in result.stderr
    assert "Traceback" not in result.output and result.stderr.strip().count("\n") == 0


def test_no_prompt_is_told(run):
    result = run("generate")
    assert (result.exit_code, result.stderr.count("--prompt")) == (1, 2)


def test_verbose_keeps_the_traceback(run, monkeypatch):
    monkeypatch.setenv("NYBBLE_VERBOSE", "1")
    result = run("generate", "-p", "x", "--top-p", "2")
    assert isinstance(result.exception, nybble.errors.RequestError)


def test_a_bad_checkpoint(run, monkeypatch):
    def refuse(self, model, **options):
        raise FormatError("PATH has no config.json")

    monkeypatch.setattr(FakeLLM, "__init__", refuse)
    result = run("chat", "PATH", input="")
    assert (result.exit_code, result.stderr) == (1, "nybble: PATH has no config.json\n")


class Interrupted(FakeModel):
    """Somebody presses Ctrl-C at the sixth token."""

    def forward(self, *arguments, **options):
        if len(self.runs) == 5:
            self.runs.clear()
            raise KeyboardInterrupt
        return super().forward(*arguments, **options)


def test_interrupted_generate_shows_what_there_is(run, monkeypatch):
    whole = run("generate", "-p", "x", "-n", "5", "--temperature", "0").stdout
    monkeypatch.setattr(FakeLLM, "model_type", Interrupted)
    result = run("generate", "-p", "x", "--temperature", "0")
    assert result.exit_code == 130
    assert result.stdout == whole
    assert "interrupted after 5 tokens" in result.stderr
    record = json.loads(run("generate", "-p", "x", "--json").stdout)
    assert (record["finish_reason"], len(record["token_ids"])) == ("cancelled", 5)


def test_chat_through_a_pipe(run):
    result = run(
        "chat",
        "-n",
        "5",
        "--seed",
        "1",
        input="Hello\n\n/help\n/nothing\n/reset\nHello\n/quit\nnever\n",
    )
    assert result.exit_code == 0
    assert result.stderr.count("[prompt:") == 2  # two answers
    assert "/system TEXT" in result.stderr and "/nothing is no command" in result.stderr
    prompts = [line.split()[1] for line in result.stderr.splitlines() if "[prompt:" in line]
    assert prompts[0] == prompts[1]  # forgotten by /reset


def test_chat_remembers_and_obeys_system(run):
    result = run("chat", "-n", "5", "--system", "S", input="one\ntwo\n/system\none\n")
    sizes = [int(line.split()[1]) for line in result.stderr.splitlines() if "[prompt:" in line]
    assert sizes[0] == len("System: S\nUser: one\nAssistant:")
    assert sizes[1] > sizes[0] + len("User: two\nAssistant:")
    assert sizes[2] == len("User: one\nAssistant:")


def test_chat_too_long_goes_on(run):
    result = run("chat", "--max-context", "40", "-n", "4", input=f"{'long ' * 20}\nshort\n")
    assert result.exit_code == 0
    assert "/reset starts again" in result.stderr
    assert result.stderr.count("[prompt:") == 1


def test_interrupted_chat_keeps_talking(run, monkeypatch):
    monkeypatch.setattr(FakeLLM, "model_type", Interrupted)
    result = run("chat", "-n", "9", input="one\ntwo\n")
    assert result.exit_code == 0
    assert "interrupted after 5 tokens" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0 and "Usage:" in result.stdout


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_has_examples(run, command):
    assert f"nybble {command} PATH" in run(command, "--help").stdout


def test_the_list_of_commands_and_version(run):
    assert all(command in run("--help").stdout for command in COMMANDS)
    assert run("--version").stdout == f"nybble {nybble.__version__}\n"


def test_the_command_starts_without_torch():
    code = (
        "import sys; from nybble.cli import main; main(['--version'], standalone_mode=False); "
        "assert not {'torch', 'numpy', 'tokenizers'} & set(sys.modules), 'heavy'"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert time.perf_counter() - start < 10  # measured 0.2 s; the limit is for a busy machine
