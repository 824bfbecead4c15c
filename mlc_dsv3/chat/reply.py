"""One answer of a model as it streams, with what it cost: from `LLM.stream` to the session and to JSON."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Unpack

from mlc_dsv3.runtime.control_tokens import END_OF_THINK, THINK
from mlc_dsv3.runtime.messages import ChatOptions, Message
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.serve.formats import Content, Event, OutputFormat, Reader, Reasoning

_READING = OutputFormat("deepseek_r1", "none")  # all formats mark reasoning alike, and nobody here answers calls
Prompt = str | list[Message]


class Counters(Protocol):
    """What an engine counts from its start on."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float
    reused_tokens: int
    decode_steps: int
    drafted: list[int]
    accepted: list[int]
    compared_seconds: float
    plain_seconds: float


class Update(Protocol):
    """What one step added to the answer."""

    token_ids: Sequence[int]
    text: str
    finish_reason: str | None
    prompt_tokens: int


class ChatModel(Protocol):
    """The part of `LLM` that a conversation needs."""

    @property
    def stats(self) -> Counters: ...

    @property
    def context_window(self) -> int: ...

    def stream(self, prompt: Prompt, params: Any, **options: Unpack[ChatOptions]) -> Generator[Update]: ...

    def prompt_tokens(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> Sequence[int]: ...

    def answer_opening(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> str: ...


@dataclass(frozen=True)
class Usage:
    """Tokens and seconds of one answer, or of several together; `EngineStats` says what they are."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    reused_tokens: int = 0
    decode_steps: int = 0
    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    compared_seconds: float = 0.0
    plain_seconds: float = 0.0

    @staticmethod
    def of(counters: Counters) -> Usage:
        """The state of an engine's counters now."""
        values = {field.name: getattr(counters, field.name) for field in fields(Usage)}
        return Usage(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def __sub__(self, earlier: Usage) -> Usage:
        def less(name: str) -> Any:
            now, before = getattr(self, name), getattr(earlier, name)
            if isinstance(now, tuple):
                return tuple(a - b for a, b in zip(now, before, strict=True))
            return now - before

        return Usage(**{field.name: less(field.name) for field in fields(Usage)})

    @property
    def tokens_per_step(self) -> float | None:
        """Of decoding, for each sequence; None where there was no step."""
        return self.decode_tokens / self.decode_steps if self.decode_steps else None

    @property
    def speed_up(self) -> float | None:
        """Of decoding, by drafting, against what it would have taken without; None where that is not known."""
        return self.plain_seconds / self.compared_seconds if self.compared_seconds else None

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """None where nothing was prefilled."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else None

    @property
    def decode_tokens_per_second(self) -> float | None:
        """None where the answer had no second token."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else None


@dataclass(frozen=True)
class Reply:
    """A finished or stopped answer; `finish_reason` is "cancelled" where Ctrl-C ended it.

    `text` begins with what the chat template said for the model (`<think>`), which `token_ids` do not have. `content`
    and `reasoning` are its parts without tags.
    """

    text: str
    content: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    prompt_tokens: int
    usage: Usage

    @property
    def message(self) -> Message:
        """What the next prompt has of it."""
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.content, **reasoning}

    def as_json(self) -> dict[str, Any]:
        """The fields of the command line's JSON."""
        usage = self.usage
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": usage.reused_tokens,
            "completion_tokens": len(self.token_ids),
            "prefill_seconds": usage.prefill_seconds,
            "prefill_tokens_per_second": usage.prefill_tokens_per_second,
            "decode_seconds": usage.decode_seconds,
            "decode_tokens_per_second": usage.decode_tokens_per_second,
            "tokens_per_step": usage.tokens_per_step,
            "drafted": list(usage.drafted),
            "accepted": list(usage.accepted),
            "speed_up": usage.speed_up,
        }


def stream_reply(
    model: ChatModel,
    prompt: Prompt,
    params: SamplingParams | None,
    emit: Callable[[str], None],
    *,
    options: ChatOptions | None = None,
    stoppable: bool = False,
) -> Reply:
    """Let `model` answer and hand every new piece of text to `emit`, beginning with what the template said for it.

    `stoppable` makes Ctrl-C end the answer and return what there is; otherwise KeyboardInterrupt goes on.
    """
    before = Usage.of(model.stats)
    options = options or {}
    opening = model.answer_opening(prompt, **options)
    thinks = THINK in opening and END_OF_THINK not in opening
    if thinks and params is not None and params.grammar is not None:
        params = replace(params, grammar=params.grammar.behind_reasoning(begun=True))
    shown = _Shown(emit)
    token_ids: list[int] = []
    finish_reason: str | None = None
    prompt_tokens = 0
    try:
        # Closing lets the engine free the request's pages now and not when the garbage collector comes by.
        with closing(model.stream(prompt, params, **options)) as updates:
            for update in updates:
                if not token_ids:
                    shown.begin(opening)
                prompt_tokens = update.prompt_tokens
                token_ids += update.token_ids
                finish_reason = update.finish_reason
                shown.add(update.text)
    except KeyboardInterrupt:
        if not stoppable:
            raise
        finish_reason = "cancelled"
    usage = Usage.of(model.stats) - before
    return Reply(*shown.parts(), tuple(token_ids), finish_reason, prompt_tokens, usage)


class _Shown:
    """The text of an answer so far, with its tags as it is shown, and read for what they mean."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._pieces: list[str] = []
        self._events: list[Event] = []
        self._reader: Reader = _READING.reader(opening="", tools=())

    def begin(self, opening: str) -> None:
        """What the template said comes first, where it leaves the thought open."""
        self._reader = _READING.reader(opening=opening, tools=())
        if END_OF_THINK not in opening:
            self._show(opening)

    def add(self, text: str) -> None:
        self._show(text)
        self._events += self._reader.feed(text)

    def parts(self) -> tuple[str, str, str]:
        """All of the text, its content and its reasoning."""
        events = [*self._events, *self._reader.finish()]
        content = "".join(event.text for event in events if isinstance(event, Content))
        reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
        return "".join(self._pieces), content, reasoning

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._emit(text)
