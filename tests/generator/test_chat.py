"""Chat templates: those that exist work, those that attack do not, and errors are the caller's to
read."""

from __future__ import annotations

import json
import logging

import pytest

from nybble.errors import FormatError, RequestError
from nybble.generator.chat import PLAIN, PLAIN_STOPS, ChatTemplate
from tests.generator.fake import FakeTokenizer

HELLO = [{"role": "user", "content": "Hello"}]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Named(FakeTokenizer):
    def __init__(self, **settings):
        self.settings = settings

    def token(self, name):
        return {"bos_token": "<s>", "eos_token": "</s>"}.get(name)


def test_chatml():
    template = ChatTemplate(CHATML)
    assert template.render(HELLO) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert (
        template.render(HELLO, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"
    )


def test_plain_with_a_system_message():
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert ChatTemplate(PLAIN).render(messages) == "System: Be brief.\nUser: Hello\nAssistant:"


def test_functions_of_hugging_face():
    assert ChatTemplate("{{ strftime_now('%Y')|length }}").render(HELLO) == "4"
    assert ChatTemplate("{{ tools|tojson }}").render(HELLO, tools=[{"a": "é<"}]) == '[{"a": "é<"}]'
    assert ChatTemplate("{{ tools|tojson(indent=1) }}").render(HELLO, tools=[1]) == "[\n 1\n]"
    assert ChatTemplate("{% for m in messages %}{% break %}{% endfor %}ok").render(HELLO) == "ok"
    assert (
        ChatTemplate("{% generation %}{{ messages[0].content }}{% endgeneration %}").render(HELLO)
        == "Hello"
    )
    with pytest.raises(RequestError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(HELLO)


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ strftime_now|attr('__globals__') }}",
    "{{ messages[0]|attr('__class__') }}",
    "{{ messages.append(messages[0]) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_templates_reach_nothing(source):
    """The sandbox either refuses, or hands out an undefined value, which prints as nothing."""
    try:
        assert ChatTemplate(source).render(HELLO) == ""
    except RequestError as error:
        assert "refuses" in str(error)
    assert HELLO == [{"role": "user", "content": "Hello"}]


def test_where_the_template_comes_from(tmp_path):
    assert (
        ChatTemplate.from_folder(tmp_path, Named(chat_template="{{ bos_token }}one")).render(HELLO)
        == "<s>one"
    )
    several = [{"name": "tool", "template": "no"}, {"name": "default", "template": "two"}]
    assert ChatTemplate.from_folder(tmp_path, Named(chat_template=several)).render(HELLO) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert ChatTemplate.from_folder(tmp_path, Named(chat_template="one")).render(HELLO) == "three"


def test_no_template_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="nybble"):
        template = ChatTemplate.from_folder(tmp_path, Named())
    assert template.render(HELLO) == "<s>User: Hello\nAssistant:"
    assert template.stops == PLAIN_STOPS
    assert "has no chat template" in caplog.text


@pytest.mark.parametrize("setting", [3, [], [{"name": "tool", "template": "x"}], "{% if %}"])
def test_broken_templates(tmp_path, setting):
    with pytest.raises(FormatError, match=r"chat.template"):
        ChatTemplate.from_folder(tmp_path, Named(chat_template=json.loads(json.dumps(setting))))


@pytest.mark.parametrize(
    "messages", [[], "Hello", {"role": "user"}, [3], [{"content": "x"}], [{"role": "user"}]]
)
def test_messages_that_are_none(messages):
    with pytest.raises(RequestError, match="message"):
        ChatTemplate(PLAIN).render(messages)
