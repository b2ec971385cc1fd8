"""Text to token ids and back, with the settings that surround a Hugging Face ``tokenizer.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nybble.errors import FormatError

# Classes that put a beginning-of-text token although their files do not say so.
_ADDS_BOS = {
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
}


class Tokenizer:
    """A checkpoint's tokenizer.

    ``bos`` is the id that starts every text, or None; ``eos`` are the ids that end one.
    ``settings`` is ``tokenizer_config.json`` (empty where there is none).

    >>> tokenizer = Tokenizer.from_folder("PATH")               # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Hello"))             # doctest: +SKIP
    'Hello'
    """

    def __init__(
        self, core: Any, bos: int | None, eos: frozenset[int], settings: dict[str, Any]
    ) -> None:
        self._core = core
        self.bos, self.eos, self.settings = bos, eos, settings
        self.vocab_size: int = core.get_vocab_size()

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the configs beside it.

        Raises:
            FormatError: there is no ``tokenizer.json``, or a file is not what its name says.
        """
        import tokenizers

        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FormatError(
                f"{folder} has no tokenizer.json; nybble reads Hugging Face fast tokenizers. "
                "Copy it from the original model, or use nybble.load_model with token ids"
            )
        try:
            core = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise FormatError(f"{file} is not a tokenizer: {error}") from error
        core.no_truncation()
        core.no_padding()
        settings, config, generation = (
            read_json(folder / f"{name}.json")
            for name in ("tokenizer_config", "config", "generation_config")
        )
        bos = _bos(core, settings, config, generation)
        return cls(core, bos, _eos(core, settings, config, generation), settings)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; with ``special`` also the beginning-of-text token, where the model
        has one."""
        explicit_no = self.settings.get("add_bos_token") is False
        ids: list[int] = self._core.encode(text, add_special_tokens=special and not explicit_no).ids
        if special and self._adds_bos and ids[:1] != [self.bos]:
            assert self.bos is not None
            return [self.bos, *ids]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without the special tokens."""
        text: str = self._core.decode(ids, skip_special_tokens=True)
        return text

    def token(self, name: str) -> str | None:
        """The text of a named special token, such as ``bos_token``."""
        text = _text(self.settings.get(name))
        if text is None and name == "bos_token" and self.bos is not None:
            return self._name(self.bos)
        if text is None and name == "eos_token" and self.eos:
            return self._name(min(self.eos))
        return text

    def _name(self, token: int) -> str | None:
        name: str | None = self._core.id_to_token(token)
        return name

    @property
    def _adds_bos(self) -> bool:
        if self.bos is None:
            return False
        if (
            not self.settings
        ):  # nothing says otherwise: the model's config names it, so texts start with it
            return True
        explicit = self.settings.get("add_bos_token")
        return (
            bool(explicit)
            if explicit is not None
            else self.settings.get("tokenizer_class") in _ADDS_BOS
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from ``file``; empty where the file does not exist."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{file} holds a {type(value).__name__}; expected an object")
    return value


def _text(value: object) -> str | None:
    """Special tokens are written as text, or as an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _config_ids(config: dict[str, Any], name: str) -> list[int]:
    value = config.get(name, config.get("text_config", {}).get(name))
    values = value if isinstance(value, list) else [value]
    return [v for v in values if type(v) is int and v >= 0]  # -1 is an old way to say none


def _bos(core: Any, settings: dict[str, Any], *configs: dict[str, Any]) -> int | None:
    text = _text(settings.get("bos_token"))
    if text is not None:
        found: int | None = core.token_to_id(text)
        return found
    if "bos_token" in settings:  # null: this model starts with none, whatever its config says
        return None
    return next((ids[0] for ids in (_config_ids(c, "bos_token_id") for c in configs) if ids), None)


def _eos(
    core: Any, settings: dict[str, Any], config: dict[str, Any], generation: dict[str, Any]
) -> frozenset[int]:
    ids = _config_ids(generation, "eos_token_id") or _config_ids(config, "eos_token_id")
    text = _text(settings.get("eos_token"))
    named = core.token_to_id(text) if text is not None else None
    return frozenset(ids if named is None else [*ids, named])
