"""The turns of a conversation: what the next prompt begins with, and which of them are forgotten for lack of room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlc_dsv3.chat.reply import ChatModel, Reply, stream_reply
from mlc_dsv3.errors import ContextWindowError, MessageTooLongError
from mlc_dsv3.runtime.messages import ChatOptions, Message

# Of the context window: with less dropped, the next question or two would not fit either, and each time that turns are
# dropped the model reads all that is left anew.
_KEPT_SHARE = 0.75
_ANSWER_TOKENS, _ANSWER_SHARE = 64, 8  # an answer is to have so many tokens, or this part of a small window


class Conversation:
    """A system prompt, and turns of a question and its answer."""

    def __init__(self, system: str | None) -> None:
        self.system = system
        self._turns: list[tuple[Message, Message]] = []

    def __len__(self) -> int:
        """How many turns there are."""
        return len(self._turns)

    @property
    def messages(self) -> list[Message]:
        """The conversation as the next prompt begins."""
        return self._messages_without(0)

    def add(self, question: Message, answer: Message) -> None:
        """Remember a turn."""
        self._turns.append((question, answer))

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self._turns.clear()

    def drop(self, count: int) -> int:
        """Forget the oldest turns, at most `count`; returns how many that were."""
        dropped = min(count, len(self))
        del self._turns[:dropped]
        return dropped

    def ask(
        self,
        model: ChatModel,
        question: Message,
        params: Any,
        emit: Callable[[str], None],
        *,
        options: ChatOptions,
        drops: bool,
        stoppable: bool = False,
    ) -> tuple[Reply, int]:
        """The answer to `question` after the turns so far, as `stream_reply` gives it; the turn is not yet added.

        With `drops` the oldest turns are forgotten where the context window has no room for the prompt and an answer
        (64 tokens, or an eighth of a smaller window); the second value says how many. ContextWindowError where the
        prompt does not fit, and MessageTooLongError where `question` alone does not.
        """
        dropped = 0
        if drops and len(self):
            answer = min(_ANSWER_TOKENS, model.context_window // _ANSWER_SHARE)
            if self._tokens_without(0, model, options, question) + answer > model.context_window:
                dropped = self.make_room(model, options, question)
        try:
            prompt = [*self.messages, question]
            return stream_reply(model, prompt, params, emit, options=options, stoppable=stoppable), dropped
        except ContextWindowError:
            alone = self._tokens_without(len(self), model, options, question)
            if alone < model.context_window:
                raise
            what = "the message and the system prompt alone have" if self.system else "the message alone has"
            raise MessageTooLongError(
                f"{what} {alone} tokens, and the context window of {model.context_window} has room for "
                f"{model.context_window - 1}; send a shorter one, or start with a larger --context-window"
            ) from None

    def make_room(self, model: ChatModel, options: ChatOptions, question: Message | None) -> int:
        """Forget the fewest oldest turns that leave a quarter of the context window free, `question` included.

        Returns how many that were: 0 where there is as much room, and where `question` alone is too long.
        """
        if question and self._tokens_without(len(self), model, options, question) >= model.context_window:
            return 0
        few, enough = 0, len(self)
        while few < enough:
            middle = (few + enough) // 2
            if self._tokens_without(middle, model, options, question) <= _KEPT_SHARE * model.context_window:
                enough = middle
            else:
                few = middle + 1
        return self.drop(few)

    def _tokens_without(self, count: int, model: ChatModel, options: ChatOptions, question: Message | None) -> int:
        """Tokens of the prompt when the `count` oldest turns are forgotten."""
        messages = [*self._messages_without(count), *([question] if question else [])]
        return len(model.prompt_tokens(messages, **options)) if messages else 0

    def _messages_without(self, count: int) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [message for turn in self._turns[count:] for message in turn]
