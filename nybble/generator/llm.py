"""``nybble.LLM``: a checkpoint, its tokenizer and an engine behind three verbs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from nybble.errors import RequestError, SettingError
from nybble.generator.chat import ChatTemplate, Message
from nybble.generator.engine import Engine, completion
from nybble.generator.request import Completion, Piece, Request, SamplingParams
from nybble.generator.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

Prompt = str | Sequence[int]
# A longer context is taken only where it is asked for: its cache can be larger than the model.
DEFAULT_CONTEXT = 8192


class LLM:
    """A language model that takes text and gives text.

    Args:
        model: "demo", a folder, or a hub id such as ``owner/name``.
        device: "auto" (the GPU if torch sees one), "cpu", "cuda", "cuda:1".
        dtype: of the activations; None: the device's usual one.
        act_bits: 8, 16 or 32, the precision of activations inside quantized products; None:
            ``NYBBLE_ACT_BITS``.
        max_context: most tokens of prompt and completion; None: the model's own, but at most 8192.
        max_batch: most prompts that run together.
        reuse_prefix: keep finished prompts in the cache for later ones that begin in the same way.
            Saves time in conversations; the last digits of logits may then depend on what ran
            before.

    Raises:
        FormatError: the checkpoint cannot be read. UnsupportedModelError: it is of a kind nybble
        does not run.

    >>> llm = nybble.LLM("demo")  # doctest: +SKIP
    >>> llm.generate("Once upon a time", SamplingParams(max_tokens=20)).text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        act_bits: int | None = None,
        max_context: int | None = None,
        max_batch: int = 8,
        reuse_prefix: bool = False,
    ) -> None:
        from nybble.models.hub import resolve
        from nybble.models.loader import load_model

        self.path = resolve(model)
        self.tokenizer = Tokenizer.from_folder(self.path)
        self.model = load_model(
            self.path, device=pick_device(device), dtype=dtype, act_bits=act_bits
        )
        config = self.model.config
        self.engine = Engine(
            self.model,
            self.tokenizer,
            context=_context(config.max_positions, max_context),
            vocab=config.vocab_size,
            rows=max_batch,
            reuse=reuse_prefix,
        )
        self._chat: ChatTemplate | None = None

    @overload
    def generate(self, prompt: str, params: SamplingParams | None = None) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], params: Params = None
    ) -> list[Completion]: ...
    @overload
    def generate(self, prompt: list[int], params: SamplingParams | None = None) -> Completion: ...
    def generate(self, prompt: Any, params: Any = None) -> Any:
        """Continue a prompt (text, or token ids taken as they are), or a list of prompts together.

        Args:
            prompt: one prompt or several.
            params: for all prompts, or one for each. Default: ``SamplingParams()``, temperature 1,
                128 tokens.

        Returns:
            A Completion, or a list of them in the order of the prompts.

        Raises:
            RequestError: a prompt is empty or too long for the context; nothing has been generated
            then.

        >>> [c.text for c in llm.generate(["One", "Two"])]  # doctest: +SKIP
        """
        if _is_one(prompt):
            return completion(list(self.stream(prompt, params)))
        prompts = list(prompt)
        each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise RequestError(
                f"{len(each)} sampling parameters came for {len(prompts)} prompts; expected as many"
            )
        requests = [
            self._request(one, sampling) for one, sampling in zip(prompts, each, strict=True)
        ]
        with ExitStack() as stack:
            for request in requests:
                self.engine.submit(request)
                stack.callback(self.engine.cancel, request)  # an error or Ctrl-C leaves none behind
            return [completion(list(self.engine.pieces(r))) for r in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Continue one prompt, piece by piece; the last has ``finish_reason``, ``usage`` and
        ``timings``.

        The request is checked at once. Several streams may be read in turns: they run together.
        Closing one cancels it.

        >>> for piece in llm.stream("Once upon a time"): print(piece.text)  # doctest: +SKIP
        """
        return self.engine.pieces(self._request(prompt, params))

    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **extra: Any
    ) -> Completion:
        """Answer a conversation: ``[{"role": "user", "content": "Hello"}, ...]``, through the
        model's chat template.

        ``extra`` (such as ``tools``) goes to the template.

        Raises:
            RequestError: the template refuses the messages, or they are too long for the context.
        """
        return completion(list(self.chat_stream(messages, params, **extra)))

    def chat_stream(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **extra: Any
    ) -> Iterator[Piece]:
        """:meth:`chat`, piece by piece."""
        text = self.chat_template.render(messages, **extra)
        ids = self.tokenizer.encode(
            text, special=False
        )  # the template writes the special tokens itself
        request = self.engine.request(
            ids, params or SamplingParams(), stops=self.chat_template.stops
        )
        return self.engine.pieces(request)

    @property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template; the plain one, with a warning, where it has none."""
        if self._chat is None:
            self._chat = ChatTemplate.from_folder(self.path, self.tokenizer)
        return self._chat

    def _request(self, prompt: Prompt, params: SamplingParams | None) -> Request:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self.engine.request(ids, params or SamplingParams())


Params = SamplingParams | Sequence[SamplingParams | None] | None


def pick_device(name: str) -> str:
    """The torch device for ``name``; "auto" is the GPU if torch sees one, else the CPU.

    Raises:
        SettingError: it is not a device's name, or torch sees no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device is {name!r}; nybble runs on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(
            f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; "
            "use cpu, or see `nybble doctor`"
        )
    return name


def _context(model: int, asked: int | None) -> int:
    if asked is None:
        return min(model, DEFAULT_CONTEXT)
    if not 1 <= asked <= model:
        raise SettingError(f"max_context is {asked}; this model takes 1..{model}")
    return asked


def _is_one(prompt: object) -> bool:
    """Whether ``prompt`` is one prompt: text, or a list of token ids."""
    if isinstance(prompt, str):
        return True
    if not isinstance(prompt, Sequence):
        raise RequestError(
            f"the prompt is a {type(prompt).__name__}; expected text, a list of token ids, or a "
            "list of those"
        )
    return bool(prompt) and isinstance(prompt[0], int)
