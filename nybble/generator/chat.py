"""Messages to a prompt, through the checkpoint's own template, which is somebody else's program: it
runs in a sandbox."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nybble.errors import FormatError, RequestError

if TYPE_CHECKING:
    from jinja2 import Environment

    from nybble.generator.tokenizer import Tokenizer

logger = logging.getLogger("nybble")

PLAIN = """\
{%- for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n{% endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}"""
# A model that was not trained on conversations goes on to write the user's part too.
PLAIN_STOPS = ("\nUser:", "\nSystem:")

Message = Mapping[str, Any]


class ChatTemplate:
    """A Jinja chat template with the functions Hugging Face gives it.

    Attributes:
        source: the template's text.
        stops: stop strings that go with it (only the plain template has any).
        note: why the plain template is used, or None.

    >>> ChatTemplate(PLAIN).render([{"role": "user", "content": "Hello"}])
    'User: Hello\\nAssistant:'
    """

    def __init__(
        self,
        source: str,
        tokens: Mapping[str, str] | None = None,
        *,
        stops: Sequence[str] = (),
        note: str | None = None,
    ) -> None:
        import jinja2

        self.source, self.stops, self.note = source, tuple(stops), note
        self._tokens = dict(tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise FormatError(
                f"the chat template is not a Jinja template nybble can run: {error}"
            ) from error

    @classmethod
    def from_folder(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template in ``chat_template.jinja`` or ``tokenizer_config.json``, else the plain one,
        with a warning."""
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        tokens = {name: text for name in names if (text := tokenizer.token(name)) is not None}
        file = Path(path) / "chat_template.jinja"
        source = (
            file.read_text(encoding="utf-8") if file.is_file() else _setting(tokenizer.settings)
        )
        if source is not None:
            return cls(source, tokens)
        note = f"{path} has no chat template; using plain 'User: ... Assistant:' text"
        logger.warning("%s", note)
        return cls("{{ bos_token }}" + PLAIN, tokens, stops=PLAIN_STOPS, note=note)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The prompt for ``messages``; ``extra`` (such as ``tools``) goes to the template.

        Raises:
            RequestError: a message has no role or content, or the template refuses the
            conversation.
        """
        import jinja2

        _check(messages)
        values = {**self._tokens, "tools": None, "documents": None, **extra}
        try:
            return self._template.render(
                messages=[dict(m) for m in messages],
                add_generation_prompt=add_generation_prompt,
                **values,
            )
        # A template is a program: besides Jinja's own errors (the sandbox's among them) it can
        # fail as Python does.
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            AttributeError,
        ) as error:
            raise RequestError(f"the chat template refuses these messages: {error}") from error


def _check(messages: Sequence[Message]) -> None:
    if isinstance(messages, (str, Mapping)) or not messages:
        raise RequestError(
            "messages is empty or not a list; expected [{'role': 'user', 'content': '...'}, ...]"
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"message {i} is {message!r}; expected an object with 'role' and 'content'"
            )
        if "content" not in message and "tool_calls" not in message:
            raise RequestError(f"message {i} (role {message['role']!r}) has no 'content'")


def _setting(settings: Mapping[str, Any]) -> str | None:
    """``chat_template`` of a tokenizer's settings: text, or a list of named templates."""
    value = settings.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {
            entry["name"]: entry["template"]
            for entry in value
            if {"name", "template"} <= entry.keys()
        }
        if isinstance(named.get("default"), str):
            return str(named["default"])
    raise FormatError(
        "chat_template in tokenizer_config.json is neither text nor a list with one named 'default'"
    )


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own tojson escapes for HTML; templates are written against this one.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _environment() -> Environment:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; here only the words
        count."""

        tags = {"generation"}  # noqa: RUF012 (declared so by Jinja)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    environment.filters["tojson"] = _tojson
    return environment
