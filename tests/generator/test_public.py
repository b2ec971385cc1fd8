"""The front door: public names, LLM's arguments, and the real thing where its files are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

import nybble
from nybble.errors import FormatError, RequestError, SettingError
from nybble.generator.llm import LLM, pick_device
from nybble.generator.request import SamplingParams
from nybble.generator.tokenizer import Tokenizer


def test_import_loads_nothing_heavy():
    code = (
        "import sys, nybble; nybble.SamplingParams(); "
        "assert 'torch' not in sys.modules; print(nybble.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == nybble.__version__


def test_public_names():
    for name in nybble.__all__:
        assert getattr(nybble, name) is not None
        assert name in dir(nybble)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nybble.nothing


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99"])
def test_devices_that_are_none(name):
    with pytest.raises(SettingError, match=f"device is '{name}'"):
        pick_device(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """The recorded 4-bit checkpoint with the tokenizer it was made from."""
    path = tmp_path_factory.mktemp("checkpoint")
    for file in ("config.json", "model.safetensors"):
        (path / file).symlink_to(data / "golden" / "exl2-4.0bpw" / file)
    (path / "tokenizer.json").symlink_to(data / "demo-model" / "tokenizer.json")
    return path


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, device="cpu")


def test_tokenizer_starts_texts_with_bos(folder):
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode("Hello, world")
    assert (tokenizer.bos, tokenizer.eos, ids[0]) == (0, {0}, 0)
    assert tokenizer.decode(ids) == "Hello, world"
    assert tokenizer.encode("Hello, world", special=False) == ids[1:]
    assert tokenizer.encode("<|endoftext|>Hi")[:2] == tokenizer.encode("Hi")[:2]  # never twice


@pytest.mark.parametrize(
    ("settings", "bos"),
    [
        ({"add_bos_token": True, "bos_token": "<|endoftext|>"}, True),
        ({"add_bos_token": False, "bos_token": "<|endoftext|>"}, False),
        (
            {"bos_token": {"content": "<|endoftext|>"}, "tokenizer_class": "LlamaTokenizerFast"},
            True,
        ),
        ({"bos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({"bos_token": None, "add_bos_token": True}, False),
    ],
)
def test_tokenizer_settings(folder, tmp_path, settings, bos):
    for file in ("tokenizer.json", "config.json"):
        shutil.copy(folder / file, tmp_path / file)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.encode("Hi")[0] == 0) == bos
    assert tokenizer.eos == {1, 7}


def test_tokenizer_files_that_are_wrong(tmp_path):
    with pytest.raises(FormatError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.model
class TestRealModel:
    """On the recorded checkpoint."""

    PROMPTS = (
        "Once upon a time",
        "The sea was",
        "He opened the door of the old house and saw",
        "I",
    )
    GREEDY = SamplingParams(max_tokens=24, temperature=0)

    def test_batch_equals_one_by_one(self, llm):
        together = llm.generate(list(self.PROMPTS), self.GREEDY)
        assert [c.token_ids for c in together] == [
            llm.generate(p, self.GREEDY).token_ids for p in self.PROMPTS
        ]

    def test_stream_equals_generate(self, llm):
        params = SamplingParams(max_tokens=30, seed=11)
        pieces = list(llm.stream("The old man", params))
        assert "".join(p.text for p in pieces) == llm.generate("The old man", params).text
        assert pieces[-1].finish_reason in ("stop", "length")

    def test_text_is_the_tokens(self, llm):
        out = llm.generate(
            "Once upon a time", SamplingParams(max_tokens=60, seed=2, ignore_eos=True)
        )
        assert out.text == llm.tokenizer.decode(out.token_ids)
        assert out.usage.completion_tokens == len(out.token_ids) == 60

    def test_greedy_agrees_with_one_forward_pass(self, llm):
        """Generation with a cache says what the model says without one."""
        import torch

        out = llm.generate("The sea was", self.GREEDY)
        ids = llm.tokenizer.encode("The sea was")
        logits = llm.model.forward(torch.tensor([ids + out.token_ids[:-1]]))
        assert logits[0, len(ids) - 1 :].argmax(-1).tolist() == out.token_ids

    def test_token_ids_are_taken_as_they_are(self, llm):
        ids = llm.tokenizer.encode("The sea was")
        assert (
            llm.generate(ids, self.GREEDY).token_ids
            == llm.generate("The sea was", self.GREEDY).token_ids
        )
        assert len(llm.generate([ids, ids[:2]], self.GREEDY)) == 2

    def test_chat_with_the_plain_template(self, llm):
        out = llm.chat(
            [{"role": "user", "content": "Good morning"}], SamplingParams(max_tokens=20, seed=1)
        )
        assert out.usage.prompt_tokens > 4
        assert "\nUser:" not in out.text

    def test_wrong_arguments(self, llm):
        assert llm.generate([]) == []
        with pytest.raises(RequestError, match="2 sampling parameters came for 1 prompts"):
            llm.generate(["a"], [None, None])
        with pytest.raises(RequestError, match="context is 1024"):
            llm.stream("word " * 2000)
        with pytest.raises(RequestError, match="the prompt is a int"):
            llm.generate(3)
        with pytest.raises(SettingError, match=r"this model takes 1\.\.1024"):
            LLM(llm.path, device="cpu", max_context=4096)
